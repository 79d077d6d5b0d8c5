"""One battery that every rule passes, whatever the optimizer, the parameters and the devices.

A cell of the battery is a choice of rule, optimizer, jit or not, parameter type, number of devices,
layers, and tree of parameters. `test_contract` asserts every property in each cell it runs. The
full product has 15,912 cells; the battery is the 221 pairs of a rule and an optimizer, each with
one of the 72 combinations of the other five axes, such that

- each rule meets every pair of values of the other five axes, and so does each optimizer;
- each of the 72 combinations occurs.

A certain rule with a certain optimizer thus runs under one combination only. The ordinary run has
17 cells, in which every value of every axis occurs (and every pair of values of four axes; two
cells run without jit, which is slow); the rest are marked slow. The first test asserts all this.
"""

import functools
import itertools
from typing import NamedTuple

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
    soft_threshold,
    sparsify,
    sr_ste,
    static,
    synflow,
)
from cka_sr_jax.training import Checkpoints

DENSITY, END, EVERY = 0.3, 5, 2  # masks change at steps 2, 4 and 5
COMMON = {"density": DENSITY, "end_step": END, "update_every": EVERY}
RULES = {  # of the parameters and the model, for masks that are made before training
    "rst": lambda *_: make_rule("rst", density=DENSITY),
    "rst_bernoulli": lambda *_: make_rule("rst", density=DENSITY, exact=False),
    "snip": lambda params, model: static(
        snip(lambda params, _: loss(model, params), params, None, DENSITY)
    ),
    "synflow": lambda params, model: static(
        synflow(lambda params, x: model(params, x, train=False), params, X[:1], DENSITY, rounds=3)
    ),
    "set": lambda *_: make_rule("set", **COMMON),
    "rigl": lambda *_: make_rule("rigl", **COMMON),
    "snfs": lambda *_: make_rule("snfs", **COMMON),
    "mest": lambda *_: make_rule("mest", **COMMON, gradient_weight=0.1),
    "mest_soft": lambda *_: make_rule("mest", **COMMON, soft=True),
    "granet": lambda *_: make_rule("granet", **COMMON, initial_density=0.6),
    "granet_dense": lambda *_: make_rule("granet", **COMMON, initial_density=1.0),
    "gmp": lambda *_: make_rule("gmp", **COMMON),
    "gmp_erk": lambda *_: make_rule("gmp", **COMMON, distribution="erk"),
    "channels": lambda *_: make_rule("channels", **COMMON),
}
GROWS = ("set", "rigl", "snfs", "mest", "mest_soft", "granet", "granet_dense")
METHODS = {  # that learn their masks
    "str": lambda: soft_threshold(initial=-2.0),
    "dst": lambda: dst(1e-2),
    "sr_ste": lambda: sr_ste(1, 2, decay=1e-2),
}
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
    # Of these layers it factors the slot of one; the others' and the momentum are whole.
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
    "lamb": lambda: optax.lamb(1e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9)
    ),
    # Injected, b1 and b2 would be bfloat16 where the gradients are, and Adam alone give NaN.
    "injected": lambda: optax.inject_hyperparams(optax.adam, static_args=("b1", "b2"))(
        learning_rate=1e-2
    ),
    "accumulated": lambda: optax.MultiSteps(optax.sgd(0.1, 0.9), 2).gradient_transformation(),
    "MultiSteps outside": lambda: optax.sgd(0.1, 0.9),
}
# In these Optax mixes dtypes by itself, and in bfloat16 Flax's layers do.
MIXING = OPTIMIZERS.keys() - {"sgd", "momentum", "lion", "rmsprop", "clipped"}
LAYERS = {
    "bias": {},
    "no bias": {"bias": False},
    "BatchNorm": {"bias": False, "norm": True},
}
AXES = {
    "rule": (*RULES, *METHODS),
    "optimizer": tuple(OPTIMIZERS),
    "compile": ("jit", "no jit"),
    "dtype": ("float32", "bfloat16"),
    "devices": (1, 4),
    "layers": tuple(LAYERS),
    "tree": ("dict", "FrozenDict", "nnx.State"),
}


class Cell(NamedTuple):
    """One value of each axis, in the order of AXES."""

    rule: str
    optimizer: str
    compile: str
    dtype: str
    devices: int
    layers: str
    tree: str


OTHERS = list(itertools.product(*list(AXES.values())[2:]))
# These strides give the coverage that the next test asserts, and few slow no-jit cells in FAST. A
# search of all strides finds others if the axes change.
CELLS = {
    (i, j): Cell(rule, optimizer, *OTHERS[(19 * i + 44 * j) % len(OTHERS)])
    for i, rule in enumerate(AXES["rule"])
    for j, optimizer in enumerate(AXES["optimizer"])
}
FAST = [cell for (i, j), cell in CELLS.items() if j == 11 * i % len(OPTIMIZERS)]


def cover_pairs(cells, names):
    """Whether every pair of values of any two of these axes occurs."""
    return all(
        {(getattr(cell, one), getattr(cell, two)) for cell in cells}
        == set(itertools.product(AXES[one], AXES[two]))
        for one, two in itertools.combinations(names, 2)
    )


def test_the_battery_covers_what_it_says():
    others = list(AXES)[2:]
    assert cover_pairs(CELLS.values(), AXES)
    assert {cell[2:] for cell in CELLS.values()} == set(OTHERS)
    for value in (*RULES, *METHODS, *OPTIMIZERS):
        assert cover_pairs([cell for cell in CELLS.values() if value in cell], others)
    assert all({cell[axis] for cell in FAST} == set(AXES[name]) for axis, name in enumerate(AXES))
    assert cover_pairs(FAST, ("dtype", "devices", "layers", "tree"))


X = jax.random.normal(jax.random.key(7), (8, 4, 4, 2))
Y = jnp.arange(8) % 4


class Net(nn.Module):
    """A convolution and two dense layers."""

    bias: bool = True
    norm: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(6, (3, 3), use_bias=self.bias, name="conv")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dense(8, use_bias=self.bias, name="mid")(nn.relu(x).reshape(len(x), -1))
        return nn.Dense(4, use_bias=self.bias, name="head")(nn.relu(x))


class NnxNet(nnx.Module):
    """The same network."""

    def __init__(self, bias=True, norm=False):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 6, (3, 3), use_bias=bias, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs) if norm else None
        self.mid = nnx.Linear(96, 8, use_bias=bias, rngs=rngs)
        self.head = nnx.Linear(8, 4, use_bias=bias, rngs=rngs)

    def __call__(self, x, train=True):
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train)
        x = self.mid(nnx.relu(x).reshape(len(x), -1))
        return self.head(nnx.relu(x))


@functools.cache
def network(layers="bias", tree="dict", dtype="float32"):
    """The parameters and `model(params, x, train=True) -> logits`."""
    if tree == "nnx.State":
        graph, params, others = nnx.split(NnxNet(**LAYERS[layers]), nnx.Param, ...)

        def model(params, x, train=True):
            return nnx.merge(graph, params, others, copy=True)(x, train)
    else:
        net = Net(**LAYERS[layers])
        stats = dict(net.init(jax.random.key(0), X))
        params = stats.pop("params")
        if tree == "FrozenDict":
            params = FrozenDict(params)

        def model(params, x, train=True):
            return net.apply({"params": params, **stats}, x, train, mutable=["batch_stats"])[0]

    return jax.tree.map(lambda p: p.astype(dtype), params), model


def loss(model, params, x=X, y=Y):
    logits = model(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def expected_counts(rule, masks, updates):
    """{path: count} or, where the layers are ranked together, the total after so many updates."""
    shapes = {path: mask.shape for path, mask in masks.items()}
    sizes = {path: mask.size for path, mask in masks.items()}
    erk = layer_counts(shapes, DENSITY)
    last = END if updates > END else max(updates - 1, 0) // EVERY * EVERY
    left = (1 - last / END) ** 3
    if rule == "sr_ste":
        return {path: size // 2 for path, size in sizes.items()}
    if rule == "mest_soft" and 0 < last < END:
        share = float(cosine(0.3, END)(last))
        return {path: min(sizes[path], n + int(share * n)) for path, n in erk.items()}
    if rule == "channels":
        final = {path: max(1, round(DENSITY * shape[-1])) for path, shape in shapes.items()}
        return {
            path: round(n + (shapes[path][-1] - n) * left) * (sizes[path] // shapes[path][-1])
            for path, n in final.items()
        }
    if rule == "gmp_erk":
        return {path: round(n + (sizes[path] - n) * left) for path, n in erk.items()}
    if rule in ("snip", "synflow"):
        return round(DENSITY * sum(sizes.values()))
    if rule in ("gmp", "granet", "granet_dense"):
        start = layer_counts(shapes, 0.6) if rule == "granet" else sizes
        final = round(DENSITY * sum(sizes.values()))
        return round(final + (sum(start.values()) - final) * left)
    return erk


def arrays(tree):
    return {path: np.asarray(leaf) for path, leaf in leaf_paths(tree)}


def model_masks(cell, opt_state):
    masks = get_masks(opt_state)
    return arrays(masks["weights"] if cell.rule in METHODS else masks)


def check(cell, weights, opt_state, old):
    """What holds after every step; `old` are the masks before it. Returns those after it."""
    values, masks = arrays(weights), model_masks(cell, opt_state)
    assert masks.keys() == {"conv/kernel", "mid/kernel", "head/kernel"}
    assert all(value.dtype == cell.dtype for value in values.values())
    assert all(np.isfinite(value).all() for value in values.values())
    for path, mask in masks.items():
        assert not values[path][~mask].any(), "pruned weights are exactly 0"
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, SparseState))
    (state,) = (leaf for leaf in leaves if isinstance(leaf, SparseState))
    if cell.rule in ("rst", "rst_bernoulli", "snip", "synflow"):
        assert all((masks[path] == old[path]).all() for path in masks)
    if cell.rule not in ("rst_bernoulli", "str", "dst"):
        counts = {path: int(mask.sum()) for path, mask in masks.items()}
        expected = expected_counts(cell.rule, masks, int(state.step))
        assert (sum(counts.values()) if isinstance(expected, int) else counts) == expected
    if cell.rule == "sr_ste":
        for mask in masks.values():
            assert (mask.reshape(-1, 2, mask.shape[-1]).sum(1) == 1).all()
    if cell.rule in METHODS:
        return masks

    # The slots of a layer are the arrays of its shape, whatever the optimizer calls them.
    slots = [np.asarray(leaf) for leaf in jax.tree.leaves(state.inner_state)]
    for path, mask in masks.items():
        new = mask & ~old[path]
        assert not values[path][new].any(), "new weights start at 0"
        own = [slot for slot in slots if slot.shape == mask.shape]
        assert bool(own) == (cell.optimizer != "sgd")
        for slot in own:
            # Adafactor adds 1e-30 to every square.
            most = 1e-20 if cell.optimizer == "adafactor" else 0
            assert (np.abs(slot[new]) <= most).all(), "new weights start with empty slots"
            assert (np.abs(slot[~mask]) <= most).all()
    return masks


def train(cell, folder=None):
    """Train a cell's network with all checks; the masks before the first step and after each.

    With a folder it also resumes from a checkpoint in there and must come to the same end.
    """
    params, model = network(cell.layers, cell.tree, cell.dtype)
    tx, weights = OPTIMIZERS[cell.optimizer](), lambda params: params
    if cell.rule in METHODS:
        method = METHODS[cell.rule]()
        tx, weights, params = learn_masks(tx, method), method.weights, method.init(params)
    else:
        tx = sparsify(tx, RULES[cell.rule](params, model))
    period = 2 if cell.optimizer == "MultiSteps outside" else 1
    if period > 1:
        tx = optax.MultiSteps(tx, period)
    x, y, traces = X, Y, 0

    def step(params, opt_state, x, y):
        nonlocal traces
        traces += 1
        grads = jax.grad(lambda params: loss(model, weights(params), x, y))(params)
        if cell.devices > 1:
            grads = jax.lax.pmean(grads, "devices")
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    if cell.devices > 1:
        x, y = (batch.reshape(cell.devices, -1, *batch.shape[1:]) for batch in (X, Y))
        # pmap compiles always; vmap is the same step without.
        step = (jax.pmap if cell.compile == "jit" else jax.vmap)(step, axis_name="devices")
    elif cell.compile == "jit":
        step = jax.jit(step)

    def spread(state):
        if cell.devices == 1:
            return state
        copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * cell.devices), state)
        # Laid out as a step leaves it, or pmap would trace the first step and the second.
        return jax.pmap(lambda state: state, "devices")(copies) if cell.compile == "jit" else copies

    def gather(state):
        if cell.devices == 1:
            return state
        state = jax.device_get(state)
        for leaf in jax.tree.leaves(state):
            assert (leaf == leaf[:1]).all(), "masks and all else are equal on every device"
        return jax.tree.map(lambda leaf: leaf[0], state)

    def go_on(state, masks, calls):
        history, state = [], spread(state)
        for _ in range(calls):
            state = jax.block_until_ready(step(*state, x, y))
            params, opt_state = gather(state)
            masks = check(cell, weights(params), opt_state, masks)
            history.append(masks)
        return (params, opt_state), history

    opt_state = tx.init(params)
    if cell.rule in RULES:
        params = apply_masks(params, get_masks(opt_state))
    start = params, opt_state
    masks = check(cell, weights(params), opt_state, model_masks(cell, opt_state))
    # Not jitted, each call compiles its `cond` anew, so those runs end after the first change of
    # masks. The others stop before the second, halfway through an accumulation if there is one.
    stop = (EVERY + 2) * period
    if cell.compile == "no jit":
        end, history = go_on(start, masks, stop)
    else:
        middle, history = go_on(start, masks, stop - 1)
        end, rest = go_on(middle, history[-1], (END + 2) * period - stop + 1)
        if folder is not None:
            restored = save_and_restore(middle, start, folder)
            resumed, _ = go_on(restored, history[-1], len(rest))
            jax.tree.map(np.testing.assert_array_equal, resumed, end)
        history += rest
        assert traces == 1, "one compilation"
    history = [masks, *history]
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), start[0], end[0])))
    # The checks of new weights have some to check; the first change of dense masks adds none.
    if cell.rule in RULES and (cell.rule, cell.compile) != ("granet_dense", "no jit"):
        grown = [(b[path] & ~a[path]).any() for a, b in itertools.pairwise(history) for path in b]
        assert any(grown) == (cell.rule in GROWS)
    return history


def save_and_restore(state, template, folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state)
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    restored = jax.tree.map(jnp.asarray, checkpoints.restore(template))
    checkpoints.close()
    return restored


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell, id="-".join(map(str, cell)), marks=() if cell in FAST else pytest.mark.slow
        )
        for cell in CELLS.values()
    ],
)
def test_contract(cell, tmp_path, request):
    if cell.optimizer in MIXING or cell.dtype == "bfloat16":
        request.getfixturevalue("standard_promotion")
    if cell.optimizer == "sgd":  # once a rule
        # Or the programs kept in memory would crash a run of the whole battery: Linux grants a
        # process 65,530 mappings (vm.max_map_count).
        jax.clear_caches()
    history = train(cell, tmp_path)
    if cell.compile == "no jit":
        other = cell._replace(compile="jit")
    elif cell.devices > 1 and cell.layers != "BatchNorm":  # its statistics are each device's own
        other = cell._replace(devices=1)
    else:
        return
    for masks, expected in zip(history, train(other), strict=False):
        different = sum((masks[path] != expected[path]).sum() for path in masks)
        # Sums are rounded in another order, which in bfloat16 may swap a few weights of 908.
        assert different <= (0 if cell.dtype == "float32" else 18)


def test_masked_training_is_training_of_the_masked_loss():
    """With fixed masks, SGD on the parameters is SGD on the masked parametrization."""
    tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(0.3))
    inner = optax.sgd(0.1, momentum=0.9)
    expected, model = network()
    opt_state, state = tx.init(expected), inner.init(expected)
    masks = get_masks(opt_state)
    params = apply_masks(expected, masks)
    slope = jax.jit(jax.grad(lambda p: loss(model, p)))
    masked_slope = jax.jit(jax.grad(lambda p: loss(model, apply_masks(p, masks))))
    for _ in range(4):
        updates, opt_state = tx.update(slope(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        updates, state = inner.update(masked_slope(expected), state, expected)
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


@pytest.mark.usefixtures("standard_promotion")
def test_dense_is_the_inner_optimizer():
    params, model = network()
    grads = jax.grad(lambda p: loss(model, p))(params)
    tx = sparsify(optax.adamw(1e-2), make_rule("dense"))
    actual, state = tx.update(grads, tx.init(params), params)
    expected, _ = optax.adamw(1e-2).update(grads, optax.adamw(1e-2).init(params), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert density(get_masks(state)) == 1


def test_masks_are_found_wherever_sparsify_was_wrapped():
    params, _ = network()
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
    params, _ = network()
    inner = sparsify(optax.sgd(0.1), rst(0.5))
    with pytest.raises(ValueError, match="sparsify needs the parameters"):
        inner.update(params, inner.init(params))
    with pytest.raises(ValueError, match="followed by another transform"):
        get_masks(optax.chain(inner, optax.scale(0.5)).init(params))
    with pytest.raises(ValueError, match="holds 0 sets of masks"):
        get_masks(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="holds 2 sets of masks"):
        get_masks((inner.init(params), inner.init(params)))
