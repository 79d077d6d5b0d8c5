"""A rule on stacked layers does what it does on separate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    Change,
    channel_masks,
    dst,
    get_masks,
    layers_of,
    leaf_paths,
    make_rule,
    map_layers,
    n_m_masks,
    ntt,
    rescale_kept,
    snip,
    soft_threshold,
    sparsify,
    sr_ste,
    synflow,
)
from tests.speeds import fast_among

STACKED = {"blocks": 1}
SHAPES = {"attention/query/kernel": (8, 2, 4), "up/kernel": (8, 12), "conv/kernel": (3, 4, 6)}
COMMON = {"density": 0.3, "end_step": 10, "update_every": 2}
RULES = {
    "rst": {"density": 0.3},
    "rst uniform": {"density": 0.3, "distribution": "uniform"},
    "set": COMMON,
    "rigl": COMMON,
    "rigl uniform_blocks": {**COMMON, "distribution": {"up": 0.1, "*": 0.4}},
    "snfs": COMMON,
    "mest": {**COMMON, "soft": True},
    "granet": {**COMMON, "initial_density": 1.0},
    "gmp": COMMON,
    "gmp erk": {**COMMON, "distribution": "erk"},
    "channels": COMMON,
}


def nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def blocks(seed, number=3):
    """The same random layers apart and stacked, of quite different sizes."""
    rng = np.random.default_rng(seed)
    apart = {
        f"block{i}/{path}": jnp.asarray(rng.normal(size=shape) * 10.0**-i, jnp.float32)
        for i in range(number)
        for path, shape in SHAPES.items()
    }
    together = {
        f"blocks/{path}": jnp.stack([apart[f"block{i}/{path}"] for i in range(number)])
        for path in SHAPES
    }
    return nested(apart), nested(together)


def as_apart(masks):
    """{path apart: mask} of stacked masks."""
    return {
        path.replace("blocks", f"block{i}"): mask[i]
        for path, mask in leaf_paths(masks)
        for i in range(len(mask))
    }


def counts(masks):
    return {path: int(np.sum(mask)) for path, mask in masks.items()}


@pytest.mark.parametrize("name", fast_among(RULES, "rst", "rigl", "gmp", "granet"))
def test_counts_per_layer_are_those_of_separate_layers(name):
    apart, together = blocks(0)
    options = {"input_axes": {"query": 1}, **RULES[name]}
    rules = [
        make_rule(name.split()[0], **options),
        make_rule(name.split()[0], **options, stacked=STACKED),
    ]
    found = []
    for rule, params in zip(rules, (apart, together), strict=True):
        masks = rule.init(jax.random.key(0), params)
        update = jax.jit(rule.update)
        for step in (2, 10):
            masks = update(jax.random.key(step), jnp.int32(step), masks, params, params)
            masks = masks.masks if isinstance(masks, Change) else masks
        found.append(masks)
    separate = dict(leaf_paths(found[0]))
    assert counts(as_apart(found[1])) == counts(separate)
    if name in ("gmp", "gmp erk", "channels", "granet"):  # the others draw places
        for path, mask in as_apart(found[1]).items():
            np.testing.assert_array_equal(mask, separate[path], err_msg=path)


@pytest.mark.slow
def test_masks_without_randomness_are_those_of_separate_layers():
    apart, together = blocks(1)
    options = {"input_axes": {"query": 1}}
    masks = {
        "n:m": lambda p, **o: n_m_masks(p, 1, 2, **o),
        "channels": lambda p, **o: channel_masks(p, 0.5, **o),
        "sr_ste": lambda p, **o: sr_ste(1, 2, **o).masks({"weights": p})["weights"],
        "dst": lambda p, **o: dst(1e-3, **o).masks(dst(1e-3, **o).init(p))["weights"],
        "str": lambda p, **o: soft_threshold(initial=-1.0, **o).masks(
            soft_threshold(initial=-1.0, **o).init(p)
        )["weights"],
    }
    for name, of in masks.items():
        stack = {**options, "stacked": STACKED}
        separate = dict(leaf_paths(jax.jit(lambda p, of=of: of(p, **options))(apart)))
        stacked = as_apart(jax.jit(lambda p, of=of, o=stack: of(p, **o))(together))
        assert stacked.keys() == separate.keys()
        for path, mask in stacked.items():
            np.testing.assert_array_equal(mask, separate[path], err_msg=f"{name} {path}")
    kept = n_m_masks(together, 1, 2, **options, stacked=STACKED)
    scaled = rescale_kept(together, kept, stacked=STACKED, input_axes={"query": 1})
    plain = rescale_kept(apart, n_m_masks(apart, 1, 2, **options), input_axes={"query": 1})
    plain = dict(leaf_paths(plain))
    for path, leaf in as_apart(scaled).items():
        np.testing.assert_allclose(leaf, plain[path], rtol=1e-6)


def loss(params, x):
    for w in params["blocks"]["w"] if "blocks" in params else params.values():
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


@pytest.mark.slow
def test_pruners_give_the_masks_of_separate_layers():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    apart, together = {f"layer{i}": w[i] for i in range(3)}, {"blocks": {"w": w}}
    x = jnp.ones((2, 4))
    model = lambda params, x: x + loss(params, x)  # noqa: E731
    for prune in (
        lambda p, **o: snip(loss, p, x, 0.4, **o),
        lambda p, **o: synflow(model, p, x, 0.4, rounds=3, **o),
    ):
        separate = prune(apart)
        stacked = prune(together, stacked=STACKED)["blocks"]["w"]
        for i in range(3):
            np.testing.assert_array_equal(stacked[i], separate[f"layer{i}"])
    masks = ntt(model, together, [x] * 2, 0.5, stacked=STACKED).masks["blocks"]["w"]
    assert masks.sum(axis=(1, 2)).tolist() == [8, 8, 8]


def test_attention_groups_and_channels_follow_its_axes():
    """N:M runs over the inputs, and a channel is a feature of one head."""
    rng = np.random.default_rng(0)
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=size), jnp.float32)}
        for name, size in (("query", (8, 2, 4)), ("key", (8, 2, 4)), ("value", (8, 2, 4)))
    }
    params["out"] = {"kernel": jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)}
    masks = n_m_masks(params, 1, 4)
    assert (masks["query"]["kernel"].reshape(2, 4, 8).sum(axis=1) == 1).all()
    assert (masks["out"]["kernel"].reshape(2, 4, 8).sum(axis=1) == 1).all()
    kept = channel_masks(params, 0.5)["query"]["kernel"]
    norms = np.linalg.norm(params["query"]["kernel"].reshape(8, 8), axis=0)
    best = np.isin(np.arange(8), np.argsort(-norms)[:4])
    np.testing.assert_array_equal(kept.reshape(8, 8), np.broadcast_to(best, (8, 8)))
    layers = layers_of(params)
    assert {layer.dims for layer in layers.values()} == {(8, 8)}


def test_rigl_keeps_the_count_of_each_slice_whatever_its_size():
    """Slices whose weights and gradients differ a hundredfold do not trade weights."""
    rng = np.random.default_rng(0)
    size = np.geomspace(1, 1e-2, 8).reshape(8, 1, 1)
    params = {"kernel": jnp.asarray(rng.normal(size=(8, 16, 16)) * size, jnp.float32)}
    rule = make_rule(
        "rigl", density=0.1, end_step=30, update_every=1, distribution="uniform",
        stacked={"kernel": 1},
    )  # fmt: skip
    tx = sparsify(optax.sgd(0.1), rule)
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(20):
        _, state = step(params, state, params)
    assert get_masks(state)["kernel"].sum(axis=(1, 2)).tolist() == [26] * 8


@pytest.mark.parametrize("number", [1, 3, 20])
def test_layers_that_share_a_loop_get_what_each_would_get_alone(number):
    rng = np.random.default_rng(0)
    params = {
        f"layer{i}": {"kernel": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}
        for i in range(number)
    } | {"head": {"kernel": jnp.ones((5, 2))}}
    layers = layers_of(params)
    masks = jax.tree.map(lambda p: p > 0, params)
    extra = {path: jnp.float32(i) for i, path in enumerate(layers)}

    def of_layer(layer, key, mask, param, grad, n):
        draw = jax.random.uniform(key, param.shape)
        return jnp.where(mask, param + n, grad * draw), jnp.sum(mask, dtype=jnp.int32)

    key = jax.random.key(3)
    found = jax.jit(lambda: map_layers(of_layer, key, layers, masks, params, params, extra))()
    for path, layer in layers.items():
        only = {path: layer}
        name = path.split("/")[0]
        mask, param = {name: masks[name]}, {name: params[name]}
        (alone,) = map_layers(of_layer, key, only, mask, param, param, extra).values()
        for one, other in zip(found[path], alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
