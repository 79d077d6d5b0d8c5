"""Channels that layers share are pruned together, against a NumPy loop over channels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    Tied,
    channel_masks,
    channels,
    get_masks,
    leaf_paths,
    sparse_init,
    sparsify,
)

SHAPES = {
    "stem": (3, 3, 2, 6),
    "block/conv1": (3, 3, 6, 4),
    "block/conv2": (3, 3, 4, 6),
    "alone": (5, 6),
    "flat": (12, 8),  # takes the six channels at two positions
    "head": (8, 3),
}
TIED = (
    Tied(("stem", "block/conv2"), ("block/conv1", "flat")),
    Tied(("block/conv1",), ("block/conv2",)),
)


def params_of(seed, dtype="float32"):
    """Weights on a coarse grid, so that there are ties."""
    rng = np.random.default_rng(seed)
    leaves = {
        path: jnp.asarray(np.round(4 * rng.normal(size=shape)) / 4, dtype)
        for path, shape in SHAPES.items()
    }
    block = {name: leaves.pop(f"block/{name}") for name in ("conv1", "conv2")}
    return {**leaves, "block": block, "bias": jnp.ones(6)}


def naive_keep(weights, count, alive):
    """The `count` channels whose slices of all these kernels have the largest norm together."""
    number = len(alive)
    norms = [sum(float(x) ** 2 for w in weights for x in w[..., c].ravel()) for c in range(number)]
    order = sorted((c for c in range(number) if alive[c]), key=lambda c: (-norms[c], c))
    return np.isin(np.arange(number), order[:count])


def naive_tied(w, counts, alive):
    """Loop over groups, channels and positions; `alive` is changed in place."""
    masks = {path: np.ones(shape, bool) for path, shape in SHAPES.items() if path != "head"}
    groups = [(*TIED[0], 6), (*TIED[1], 4), (("alone",), (), 6), (("flat",), (), 8)]
    for outputs, _, _ in groups:
        alive[outputs] = naive_keep([w[p] for p in outputs], counts[outputs], alive[outputs])
    for outputs, inputs, number in groups:
        for c in range(number):
            if alive[outputs][c]:
                continue
            for path in outputs:
                masks[path][..., c] = False
            for path in inputs:
                for row in range(c, SHAPES[path][-2], number):
                    masks[path][..., row, :] = False
    return masks


def all_alive():
    return {
        TIED[0].outputs: np.ones(6, bool),
        TIED[1].outputs: np.ones(4, bool),
        ("alone",): np.ones(6, bool),
        ("flat",): np.ones(8, bool),
    }


def check(masks, expected):
    found = {path: np.asarray(mask) for path, mask in leaf_paths(masks)}
    assert set(found) == set(expected)
    for path, mask in expected.items():
        np.testing.assert_array_equal(found[path], mask, path)


@pytest.mark.parametrize("density", [0.01, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_layers_keep_the_same_channels_and_none_reads_the_others(density, dtype):
    params = params_of(0, dtype)
    w = {path: np.asarray(leaf, np.float64) for path, leaf in leaf_paths(params)}
    alive = all_alive()
    counts = {group: max(1, round(density * keep.size)) for group, keep in alive.items()}
    masks = jax.jit(lambda p: channel_masks(p, density, exclude="head", tied=TIED))(params)
    check(masks, naive_tied(w, counts, alive))
    assert isinstance(masks["bias"], optax.MaskedNode)


def test_the_rule_prunes_groups_along_the_cubic_schedule():
    params = params_of(0)
    rule = channels(0.3, start_step=1, end_step=9, update_every=2, exclude="head", tied=TIED)
    tx = sparsify(optax.sgd(1.0), rule)
    params, state = sparse_init(tx, params)
    rng = np.random.default_rng(1)
    alive = all_alive()
    step_fn = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for step in range(11):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        before = {path: np.asarray(leaf, np.float64) for path, leaf in leaf_paths(params)}
        updates, state = step_fn(grads, state, params)
        params = optax.apply_updates(params, updates)
        if step in (1, 3, 5, 7, 9):
            left = (1 - (step - 1) / 8) ** 3
            counts = {}
            for group, keep in alive.items():
                final = max(1, round(0.3 * keep.size))
                counts[group] = round(final + (keep.size - final) * left)
            expected = naive_tied(before, counts, alive)
            check(get_masks(state), expected)
    assert [int(keep.sum()) for keep in alive.values()] == [2, 1, 2, 2]
    for path, leaf in leaf_paths(params):
        if path in expected:
            assert not np.asarray(leaf)[~expected[path]].any()


def test_a_layer_that_stays_dense_does_not_count_and_is_not_masked():
    params = params_of(0)
    masks = channel_masks(params, 0.5, exclude=("head", "stem"), tied=TIED)
    w = np.asarray(params["block"]["conv2"], np.float64)
    keep = naive_keep([w], 3, np.ones(6, bool))
    np.testing.assert_array_equal(masks["block"]["conv2"].any((0, 1, 2)), keep)
    np.testing.assert_array_equal(masks["block"]["conv1"].any((0, 1, 3)), keep)
    assert isinstance(masks["stem"], optax.MaskedNode)


@pytest.mark.parametrize(
    ("tied", "options", "message"),
    [
        ([Tied(("stm",))], {}, "tied names 'stm', which is no parameter: use paths such as alone"),
        ([Tied(("stem",)), Tied(("stem",))], {}, "tied names stem twice in outputs: put all"),
        ([Tied((), ("stem",))], {}, "tied has a group without outputs"),
        ([Tied(("stem", "head"))], {}, "head is matrix 8 x 3 and tied to the 6 channels of stem"),
        ([Tied(("stem",), ("head",))], {}, "head is matrix 8 x 3 and tied to the 6 channels"),
        ([Tied(("stem",))], {"stacked": {"stem": 1}}, "tied names stem, a stack of layers or"),
    ],
)
def test_groups_that_do_not_fit_are_one_sentence(tied, options, message):
    for call in (
        lambda: channel_masks(params_of(0), 0.5, tied=tied, **options),
        lambda: sparsify(optax.sgd(0.1), channels(0.5, end_step=500, tied=tied, **options)).init(
            params_of(0)
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
