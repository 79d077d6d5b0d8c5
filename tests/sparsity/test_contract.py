"""One battery that every rule passes, under many optimisers, parameter trees and types."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from cka_sr_jax.sparsity import (
    SparseState,
    apply_masks,
    cosine,
    density,
    dst,
    get_masks,
    layer_counts,
    leaf_paths,
    learn_masks,
    make_rule,
    rst,
    snip,
    sparsify,
    sr_ste,
    static,
    str_,
)
from cka_sr_jax.training import Checkpoints


class Net(nn.Module):
    """A convolution with BatchNorm and bias, and dense layers with and without bias."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        x = nn.relu(nn.Dense(8, use_bias=False, name="mid")(x.reshape(len(x), -1)))
        return nn.Dense(4, name="head")(x)


X = jax.random.normal(jax.random.key(7), (8, 4, 4, 2))
Y = jnp.arange(8) % 4


@functools.cache
def variables():
    return Net().init(jax.random.key(0), X)


def loss(params, x=X, y=Y):
    logits, _ = Net().apply(
        {"params": params, "batch_stats": variables()["batch_stats"]}, x, mutable=["batch_stats"]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


DENSITY, END, EVERY = 0.3, 6, 2
COMMON = {"density": DENSITY, "end_step": END, "update_every": EVERY}
RULES = {
    "rst": lambda: make_rule("rst", density=DENSITY),
    "set": lambda: make_rule("set", **COMMON),
    "rigl": lambda: make_rule("rigl", **COMMON),
    "snfs": lambda: make_rule("snfs", **COMMON),
    "mest": lambda: make_rule("mest", **COMMON, gradient_weight=0.1),
    "mest_soft": lambda: make_rule("mest", **COMMON, soft=True),
    "gmp": lambda: make_rule("gmp", **COMMON),
    "gmp_erk": lambda: make_rule("gmp", **COMMON, distribution="erk"),
    "granet": lambda: make_rule("granet", **COMMON, initial_density=0.6),
    "granet_dense": lambda: make_rule("granet", **COMMON, initial_density=1.0),
    "channels": lambda: make_rule("channels", **COMMON),
    "snip": lambda: static(
        snip(lambda params, _: loss(params), variables()["params"], None, DENSITY)
    ),
}
METHODS = {  # that learn their masks
    "str": lambda: str_(initial=-2.0),
    "dst": lambda: dst(1e-2),
    "sr_ste": lambda: sr_ste(1, 2, decay=1e-2),
}
OPTIMISERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "lamb": lambda: optax.lamb(1e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9)
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "accumulated": lambda: optax.MultiSteps(optax.sgd(0.1, 0.9), 2).gradient_transformation(),
}


def slow_but(*quick, rules=tuple(RULES)):
    """Every rule, all but these marked slow."""
    return [pytest.param(rule, marks=() if rule in quick else pytest.mark.slow) for rule in rules]


# Rules that make their own masks, for any tree of parameters.
MAKE_MASKS = [rule for rule in RULES if rule != "snip"]


def expected_counts(rule, params, updates):
    """{path: count} or, where the layers are ranked together, the total after so many updates."""
    shapes = {path: leaf.shape for path, leaf in leaf_paths(params) if leaf.ndim >= 2}
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    erk = layer_counts(shapes, DENSITY)
    last = min(max(updates - 1, 0) // EVERY * EVERY, END)
    left = (1 - last / END) ** 3
    if rule == "mest_soft" and 0 < last < END:
        share = float(cosine(0.3, END)(last))
        return {p: min(sizes[p], n + int(share * n)) for p, n in erk.items()}
    if rule == "channels":
        final = {path: max(1, round(DENSITY * shape[-1])) for path, shape in shapes.items()}
        return {
            path: round(n + (shapes[path][-1] - n) * left) * (sizes[path] // shapes[path][-1])
            for path, n in final.items()
        }
    if rule == "gmp_erk":
        return {path: round(n + (sizes[path] - n) * left) for path, n in erk.items()}
    if rule == "snip":
        return round(DENSITY * sum(sizes.values()))
    if rule in ("gmp", "granet", "granet_dense"):
        start = layer_counts(shapes, 0.6) if rule == "granet" else sizes
        final = round(DENSITY * sum(sizes.values()))
        return round(final + (sum(start.values()) - final) * left)
    return erk


def check(rule, params, opt_state):
    """Pruned weights are exactly 0 and the counts are the rule's."""
    (state,) = (
        leaf
        for leaf in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, SparseState))
        if isinstance(leaf, SparseState)
    )
    expected = expected_counts(rule, params, int(state.step))
    masks = {path: np.asarray(mask) for path, mask in leaf_paths(state.masks)}
    values = {path: np.asarray(leaf, np.float32) for path, leaf in leaf_paths(params)}
    counts = {path: int(mask.sum()) for path, mask in masks.items()}
    assert (sum(counts.values()) if isinstance(expected, int) else counts) == expected
    for path, mask in masks.items():
        assert not values[path][~mask].any(), path
    assert all(np.isfinite(value).all() for value in values.values())
    return masks, values


def train(rule, tx, params, loss_fn=loss, steps=END + 2):
    """A few jitted steps, checked after each; also that they compile once and masks move."""
    opt_state = tx.init(params)
    params = apply_masks(params, get_masks(opt_state))
    masks, _ = first, _ = check(rule, params, opt_state)
    compilations = 0

    @jax.jit
    def step(params, opt_state):
        nonlocal compilations
        compilations += 1
        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    before = params
    for _ in range(steps):
        params, opt_state = step(params, opt_state)
        old, (masks, values) = masks, check(rule, params, opt_state)
        for path, mask in masks.items():
            assert not values[path][mask & ~old[path]].any(), "new weights start at 0"
    assert compilations == 1
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, params)
    assert any(jax.tree.leaves(moved))
    if steps > EVERY:
        changed = any((masks[path] != first[path]).any() for path in masks)
        assert changed == (rule not in ("rst", "snip"))
    return params, opt_state


@pytest.mark.parametrize(
    ("rule", "optimiser"),
    [
        # RigL meets every optimiser, and every rule Adam; the rest of the product is slow.
        pytest.param(rule, name, marks=() if rule == "rigl" or name == "adam" else pytest.mark.slow)
        for rule in RULES
        for name in OPTIMISERS
    ],
)
def test_every_rule_with_every_optimiser(rule, optimiser):
    train(rule, sparsify(OPTIMISERS[optimiser](), RULES[rule]()), variables()["params"])


@pytest.mark.parametrize(
    ("method", "optimiser"),
    [
        pytest.param(name, optimiser, marks=() if optimiser == "adam" else pytest.mark.slow)
        for name in METHODS
        for optimiser in OPTIMISERS
    ],
)
def test_every_method_that_learns_its_masks_with_every_optimiser(method, optimiser):
    method = METHODS[method]()
    tx = learn_masks(OPTIMISERS[optimiser](), method)
    start = trained = method.init(variables()["params"])
    opt_state = tx.init(trained)
    compilations = 0

    @jax.jit
    def step(trained, opt_state):
        nonlocal compilations
        compilations += 1
        grads = jax.grad(lambda trained: loss(method.weights(trained)))(trained)
        updates, opt_state = tx.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state

    for _ in range(4):
        trained, opt_state = step(trained, opt_state)
        masks = dict(leaf_paths(get_masks(opt_state)["weights"]))
        for path, weight in leaf_paths(method.weights(trained)):
            assert np.isfinite(weight).all()
            if path in masks:
                assert not np.asarray(weight)[~np.asarray(masks[path])].any(), path
    assert compilations == 1
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, trained)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("rule", slow_but("rigl", "granet"))
def test_multisteps_outside(rule):
    tx = optax.MultiSteps(sparsify(optax.sgd(0.1, 0.9), RULES[rule]()), 2)
    train(rule, tx, variables()["params"], steps=2 * END)


@pytest.mark.parametrize("rule", slow_but("rst", "rigl", rules=MAKE_MASKS))
def test_frozen_dict_of_bfloat16(rule):
    params = FrozenDict(jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables()["params"]))
    params, _ = train(rule, sparsify(optax.adam(1e-2), RULES[rule]()), params)
    assert isinstance(params, FrozenDict)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))


@pytest.mark.parametrize("rule", slow_but("rst", "rigl", rules=MAKE_MASKS))
def test_nnx_state(rule):
    class NnxNet(nnx.Module):
        def __init__(self, rngs):
            self.mid = nnx.Linear(32, 8, rngs=rngs)
            self.head = nnx.Linear(8, 4, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.mid(x.reshape(len(x), -1))))

    graph, params = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param)

    def nnx_loss(params):
        logits = nnx.merge(graph, params)(X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    train(rule, sparsify(optax.sgd(0.1, 0.9), RULES[rule]()), params, nnx_loss)


@pytest.mark.parametrize("rule", slow_but("rst", "rigl"))
def test_jit_changes_nothing(rule):
    tx = sparsify(optax.sgd(0.1, 0.9), RULES[rule]())
    jitted, _ = train(rule, tx, variables()["params"], steps=EVERY + 1)
    opt_state = tx.init(variables()["params"])
    params = apply_masks(variables()["params"], get_masks(opt_state))
    for _ in range(EVERY + 1):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, jitted)


@pytest.mark.parametrize("rule", slow_but("rst", "rigl"))
def test_masks_are_equal_on_every_device(rule):
    tx = sparsify(optax.sgd(0.1, 0.9), RULES[rule]())

    def step(params, opt_state, x, y):
        grads = jax.lax.pmean(jax.grad(loss)(params, x, y), "d")
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = variables()["params"]
    opt_state = tx.init(params)
    params = apply_masks(params, get_masks(opt_state))
    many = jax.tree.map(lambda a: jnp.stack([a] * 4), (params, opt_state))
    mapped = jax.pmap(step, axis_name="d")
    for _ in range(EVERY + 2):
        many = mapped(*many, X.reshape(4, 2, 4, 4, 2), Y.reshape(4, 2))
        jax.block_until_ready(many)
    for leaf in jax.tree.leaves(get_masks(many[1])):
        assert (leaf == leaf[:1]).all()
    check(rule, *jax.tree.map(lambda a: a[0], many))


@pytest.mark.parametrize("rule", slow_but("rigl"))
def test_a_checkpoint_resumes_with_the_same_masks_bit_for_bit(rule, tmp_path):
    tx = sparsify(optax.adam(1e-2), RULES[rule]())
    update = jax.jit(lambda params, state: tx.update(jax.grad(loss)(params), state, params))

    def go_on(params, opt_state, steps):
        for _ in range(steps):
            updates, opt_state = update(params, opt_state)
            params = optax.apply_updates(params, updates)
        return params, opt_state

    fresh = variables()["params"], tx.init(variables()["params"])
    start = apply_masks(fresh[0], get_masks(fresh[1])), fresh[1]
    stopped = go_on(*start, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, stopped)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = jax.tree.map(jnp.asarray, checkpoints.restore(fresh))
    checkpoints.close()
    ends = go_on(*stopped, END - 1), go_on(*restored, END - 1)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    check(rule, *ends[1])


@pytest.mark.parametrize(
    "optimiser",
    [
        pytest.param(name, marks=() if name in ("momentum", "adam", "muon") else pytest.mark.slow)
        for name in OPTIMISERS
        if name not in ("sgd", "adafactor")  # no slot; slots of whole rows and columns
    ],
)
def test_new_weights_start_at_zero_with_empty_slots(optimiser):
    tx = sparsify(OPTIMISERS[optimiser](), RULES["set"]())
    params = variables()["params"]
    opt_state = tx.init(params)
    params = apply_masks(params, get_masks(opt_state))
    update = jax.jit(lambda params, opt_state: tx.update(jax.grad(loss)(params), opt_state, params))
    for step in range(4):
        before = get_masks(opt_state)
        updates, opt_state = update(params, opt_state)
        params = optax.apply_updates(params, updates)
        after = get_masks(opt_state)
        new = np.asarray(after["mid"]["kernel"] & ~before["mid"]["kernel"])
        assert new.any() == (step == EVERY)
        assert not np.asarray(params["mid"]["kernel"])[new].any()
        slots = [s for s in jax.tree.leaves(opt_state.inner_state) if s.shape == new.shape]
        assert slots
        for slot in slots:
            assert not np.asarray(slot)[new].any()
            assert not np.asarray(slot)[~np.asarray(after["mid"]["kernel"])].any()


def test_masked_training_is_training_of_the_masked_loss():
    """With fixed masks, SGD on the parameters is SGD on the masked parametrisation."""
    tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(0.3))
    params, opt_state = train("rst", tx, variables()["params"], steps=4)
    masks = get_masks(opt_state)
    inner = optax.sgd(0.1, momentum=0.9)
    expected = variables()["params"]
    state = inner.init(expected)
    for _ in range(4):
        grads = jax.grad(lambda p: loss(apply_masks(p, masks)))(expected)
        updates, state = inner.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        params,
        apply_masks(expected, masks),
    )


def test_bfloat16_updates_of_float32_parameters_end_at_exactly_zero():
    params = {"w": jax.random.normal(jax.random.key(0), (40, 50))}
    tx = sparsify(optax.sgd(0.1), make_rule("set", density=0.3, end_step=6, update_every=1))
    opt_state = tx.init(params)
    for step in range(7):
        grads = {"w": jax.random.normal(jax.random.key(step), (40, 50), jnp.bfloat16)}
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert not np.asarray(params["w"])[~np.asarray(get_masks(opt_state)["w"])].any()


def test_dense_is_the_inner_optimiser():
    params = variables()["params"]
    grads = jax.grad(loss)(params)
    tx = sparsify(optax.adamw(1e-2), make_rule("dense"))
    actual, state = tx.update(grads, tx.init(params), params)
    expected, _ = optax.adamw(1e-2).update(grads, optax.adamw(1e-2).init(params), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert density(get_masks(state)) == 1


def test_masks_are_found_wherever_sparsify_was_wrapped():
    params = variables()["params"]
    masks = static(get_masks(sparsify(optax.sgd(1.0), rst(0.5)).init(params)))
    inner = sparsify(optax.sgd(0.1), masks)
    for tx in (
        inner,
        optax.MultiSteps(inner, 3),
        optax.chain(optax.clip(1.0), inner),
        optax.inject_hyperparams(lambda learning_rate: sparsify(optax.sgd(learning_rate), masks))(
            learning_rate=0.1
        ),
    ):
        found = get_masks(tx.init(params))
        assert [p for p, _ in leaf_paths(found)] == ["conv/kernel", "head/kernel", "mid/kernel"]


def test_misuse_is_one_sentence():
    params = variables()["params"]
    inner = sparsify(optax.sgd(0.1), rst(0.5))
    with pytest.raises(ValueError, match="sparsify needs the parameters"):
        inner.update(params, inner.init(params))
    with pytest.raises(ValueError, match="followed by another transform"):
        get_masks(optax.chain(inner, optax.scale(0.5)).init(params))
    with pytest.raises(ValueError, match="holds 0 sets of masks"):
        get_masks(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="holds 2 sets of masks"):
        get_masks((inner.init(params), inner.init(params)))
