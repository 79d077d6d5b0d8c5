"""SNIP, GraSP and SynFlow against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    apply_masks,
    grasp,
    layers_of,
    leaf_paths,
    snip,
    static,
    synflow,
    top_k_masks,
)
from cka_sr_jax.sparsity.before_training import grasp_scores, snip_scores, synflow_scores

WIDTHS = (48, 128, 128, 16, 8)


@jax.jit  # eager dispatch is slow
def model(params, x):
    """A ReLU network without bias, but for the scale of its outputs."""
    for layer in sorted(params["layers"]):
        x = jax.nn.relu(x @ params["layers"][layer])
    return x * params["scale"][None]


def make_params(widths=WIDTHS):
    keys = jax.random.split(jax.random.key(0), len(widths))
    layers = {
        f"l{i}": jax.random.normal(keys[i], shape) / shape[0] ** 0.5
        for i, shape in enumerate(itertools.pairwise(widths))
    }
    return {"layers": layers, "scale": jnp.ones(widths[-1])}


@jax.jit
def loss(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(params, x), y).mean()


def make_batch(width=WIDTHS[0]):
    return jax.random.normal(jax.random.key(1), (32, width)), jnp.arange(32) % 8


def kept(masks):
    return {path: int(mask.sum()) for path, mask in leaf_paths(masks)}


def test_snip_is_the_sensitivity_to_the_mask():
    params, batch = make_params(), make_batch()
    ones = jax.tree.map(jnp.ones_like, params)
    masked = lambda c: loss(jax.tree.map(jnp.multiply, c, params), batch)  # noqa: E731
    by_mask = jax.jit(jax.grad(masked))(ones)
    scores = snip_scores(loss, params, batch, layers_of(params))
    for path, expected in leaf_paths(by_mask["layers"]):
        np.testing.assert_allclose(scores[f"layers/{path}"], np.abs(expected), atol=1e-7)


def test_grasp_is_the_hessian_times_the_gradient(enable_x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), make_params((6, 10, 9, 8)))
    batch = make_batch(6)
    weights = params["layers"]

    gradient = jax.jit(jax.grad(lambda w: loss(params | {"layers": w}, batch)))

    g, step = gradient(weights), 1e-6
    ahead = gradient(jax.tree.map(lambda w, d: w + step * d, weights, g))
    behind = gradient(jax.tree.map(lambda w, d: w - step * d, weights, g))
    scores = grasp_scores(loss, params, batch, layers_of(params))
    for layer, weight in weights.items():
        expected = weight * (ahead[layer] - behind[layer]) / (2 * step)
        np.testing.assert_allclose(scores[f"layers/{layer}"], expected, rtol=1e-5, atol=1e-10)


def test_synflow_is_conserved_from_layer_to_layer():
    params = make_params()
    total = model(jax.tree.map(jnp.abs, params), jnp.ones((1, WIDTHS[0]))).sum()
    for score in synflow_scores(
        model, params, jnp.zeros((1, WIDTHS[0])), layers_of(params)
    ).values():
        np.testing.assert_allclose(score.sum(), total, rtol=1e-5)


@pytest.mark.slow
def test_synflow_keeps_every_layer_where_one_shot_pruning_empties_some():
    # The wide layer's outgoing weights are the smallest of all.
    params = make_params((64, 100, 1500, 8))
    size = sum(leaf.size for leaf in params["layers"].values())
    magnitudes = dict(leaf_paths(jax.tree.map(jnp.abs, params["layers"])))
    by_magnitude = kept(top_k_masks(magnitudes, round(0.001 * size)))
    masks = synflow(model, params, jnp.ones((1, 64)), 0.001)
    assert min(by_magnitude.values()) == 0
    assert min(kept(masks).values()) > 0
    assert sum(kept(masks).values()) == round(0.001 * size)
    # Not only kept: there is a path from the inputs to the outputs.
    outputs = model(jax.tree.map(jnp.abs, apply_masks(params, masks)), jnp.ones((1, 64)))
    assert outputs.any()


@pytest.mark.parametrize(
    ("method", "density"),
    [*(pytest.param(*cell, marks=pytest.mark.slow) for cell in
     [(grasp, 0.013), (snip, 0.5), (snip, 0.013), (grasp, 0.5)])],
)  # fmt: skip
def test_counts_are_exact_and_shuffling_keeps_them(method, density):
    params, batch = make_params(), make_batch()
    masks = method(loss, params, batch, density)
    size = sum(leaf.size for leaf in params["layers"].values())
    assert sum(kept(masks).values()) == round(density * size)
    assert isinstance(masks["scale"], optax.MaskedNode)
    shuffled = method(loss, params, batch, density, shuffle=jax.random.key(0))
    assert kept(shuffled) == kept(masks)
    assert (shuffled["layers"]["l0"] != masks["layers"]["l0"]).any()
    excluded = method(loss, params, batch, density, exclude=("l3",))
    assert list(kept(excluded)) == ["layers/l0", "layers/l1", "layers/l2"]
    static(masks).init(jax.random.key(0), params)


def test_the_best_scores_are_kept():
    params, batch = make_params(), make_batch()
    masks = dict(leaf_paths(grasp(loss, params, batch, 0.2)))
    scores = grasp_scores(loss, params, batch, layers_of(params))
    inside = np.concatenate([np.asarray(scores[p])[masks[p]] for p in masks])
    outside = np.concatenate([np.asarray(scores[p])[~masks[p]] for p in masks])
    assert inside.min() >= outside.max()


def test_synflow_in_one_round_and_shuffled():
    params = make_params()
    masks = synflow(model, params, jnp.ones((1, WIDTHS[0])), 0.1, rounds=1)
    expected = top_k_masks(
        synflow_scores(model, params, jnp.ones((1, WIDTHS[0])), layers_of(params)),
        sum(kept(masks).values()),
    )
    for path, mask in leaf_paths(masks):
        np.testing.assert_array_equal(mask, expected[path])
    shuffled = synflow(
        model, params, jnp.ones((1, WIDTHS[0])), 0.1, rounds=1, shuffle=jax.random.key(0)
    )
    assert kept(shuffled) == kept(masks)


# jax 0.7 has it under its old name.
enable_x64_here = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_synflow_of_a_network_too_deep_for_float32(dtype):
    """Of 24 layers the flow is near 1e45: float64 holds it, and every layer lives."""
    with enable_x64_here(True):
        params = {
            f"l{i:02}": jax.random.normal(jax.random.key(i), (100, 100), dtype) for i in range(24)
        }

        def deep(params, x):
            for layer in sorted(params):
                x = jax.nn.relu(x @ params[layer])
            return x

        inputs = jnp.ones((1, 100), dtype)
        if dtype == jnp.float32:
            with pytest.raises(ValueError, match="leave the range of float32 in this model"):
                synflow(deep, params, inputs, 0.1, rounds=10)
            return
        masks = synflow(deep, params, inputs, 0.1, rounds=10)
    assert sum(kept(masks).values()) == round(0.1 * 24 * 100**2)
    assert min(kept(masks).values()) > 0


def test_scores_that_are_not_finite_are_an_error():
    params, (x, y) = make_params(), make_batch()
    broken = params | {"layers": params["layers"] | {"l0": params["layers"]["l0"] * jnp.nan}}
    for method in (snip, grasp):
        with pytest.raises(ValueError, match="the scores of layers/l0 are not finite"):
            method(loss, broken, (x, y), 0.5)


def test_bad_input_is_one_sentence():
    params, batch = make_params(), make_batch()
    for call, message in (
        (lambda: snip(loss, params, batch, 0.0), "density=0.0 is not in"),
        (lambda: grasp(loss, params, batch, 2.0), "density=2.0 is not in"),
        (lambda: synflow(model, params, batch[0], 0.1, rounds=0), "rounds=0 is not"),
        (lambda: synflow(model, params, batch[0], 0.1, exclude="*"), "is left to prune"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
