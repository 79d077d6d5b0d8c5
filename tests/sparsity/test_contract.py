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
    Rule,
    apply_masks,
    density,
    get_masks,
    layer_counts,
    leaf_paths,
    make_rule,
    rst,
    sparsify,
    static,
)


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


def moving(density):
    """A rule with fresh random masks every second step: all there is to test about an update."""
    random = rst(density)
    return Rule(
        init=random.init,
        update=lambda key, step, masks, params, grads: random.init(key, params),
        due=lambda step: step % 2 == 1,
    )


RULES = {"rst": lambda: make_rule("rst", density=0.3), "moving": lambda: moving(0.3)}
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


def check(params, opt_state, counts):
    """Pruned weights are exactly 0 and every layer has its target count."""
    masks = dict(leaf_paths(get_masks(opt_state)))
    values = dict(leaf_paths(params))
    assert masks.keys() == counts.keys()
    for path, mask in masks.items():
        assert int(mask.sum()) == counts[path], path
        assert not np.any(np.asarray(values[path])[~np.asarray(mask)]), path
    assert all(np.isfinite(np.asarray(v, np.float32)).all() for v in values.values())


def counts_of(params):
    shapes = {path: leaf.shape for path, leaf in leaf_paths(params) if leaf.ndim >= 2}
    return layer_counts(shapes, 0.3)


def train(tx, params, loss_fn=loss, steps=5):
    """A few jitted steps, checked after each; also that they compile once."""
    opt_state = tx.init(params)
    params = apply_masks(params, get_masks(opt_state))
    counts = counts_of(params)
    check(params, opt_state, counts)
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
        check(params, opt_state, counts)
    assert compilations == 1
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, params)
    assert any(jax.tree.leaves(moved))
    return params, opt_state


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_optimiser(rule, optimiser):
    train(sparsify(OPTIMISERS[optimiser](), RULES[rule]()), variables()["params"])


@pytest.mark.parametrize("rule", RULES)
def test_multisteps_outside(rule):
    tx = optax.MultiSteps(sparsify(optax.sgd(0.1, 0.9), RULES[rule]()), 2)
    train(tx, variables()["params"])


@pytest.mark.parametrize("rule", RULES)
def test_frozen_dict(rule):
    train(sparsify(optax.adam(1e-2), RULES[rule]()), FrozenDict(variables()["params"]))


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16(rule):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables()["params"])
    params, _ = train(sparsify(optax.adam(1e-2), RULES[rule]()), params)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))


@pytest.mark.parametrize("rule", RULES)
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

    train(sparsify(optax.adam(1e-2), RULES[rule]()), params, nnx_loss)


@pytest.mark.parametrize("rule", RULES)
def test_jit_changes_nothing(rule):
    tx = sparsify(optax.sgd(0.1, 0.9), RULES[rule]())
    jitted, _ = train(tx, variables()["params"], steps=3)
    opt_state = tx.init(variables()["params"])
    params = apply_masks(variables()["params"], get_masks(opt_state))
    for _ in range(3):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, jitted)


@pytest.mark.parametrize("rule", RULES)
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
    for _ in range(4):
        many = mapped(*many, X.reshape(4, 2, 4, 4, 2), Y.reshape(4, 2))
        jax.block_until_ready(many)
    for leaf in jax.tree.leaves(get_masks(many[1])):
        assert (leaf == leaf[:1]).all()
    one = jax.tree.map(lambda a: a[0], many)
    check(*one, counts_of(params))


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "injected", "muon", "lion"])
def test_new_weights_start_at_zero_with_empty_slots(optimiser):
    tx = sparsify(OPTIMISERS[optimiser](), moving(0.3))
    params = variables()["params"]
    opt_state = tx.init(params)
    params = apply_masks(params, get_masks(opt_state))
    for step in range(4):
        before = get_masks(opt_state)
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        after = get_masks(opt_state)
        new = np.asarray(after["mid"]["kernel"] & ~before["mid"]["kernel"])
        assert new.any() == (step % 2 == 1)
        assert not np.asarray(params["mid"]["kernel"])[new].any()
        slots = [s for s in jax.tree.leaves(opt_state.inner_state) if s.shape == new.shape]
        assert slots
        for slot in slots:
            assert not np.asarray(slot)[new].any()
            assert not np.asarray(slot)[~np.asarray(after["mid"]["kernel"])].any()


def test_masked_training_is_training_of_the_masked_loss():
    """With fixed masks, SGD on the parameters is SGD on the masked parametrisation."""
    tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(0.3))
    params, opt_state = train(tx, variables()["params"], steps=4)
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
