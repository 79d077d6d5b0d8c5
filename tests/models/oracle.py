"""Blocks and models against what `naive` computes from the same variables."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.naive import NaiveLayers
from tests.models.shapes import KEY, random_variables


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def block_variables(block, x):
    """Positive random parameters and statistics of a block that is applied to x."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: block.init(KEY, jnp.asarray(x), train=True))
    return jax.tree.map(lambda v: rng.uniform(0.1, 1, v.shape).astype(np.float32), shapes)


def assert_block_equals(block, naive, x, train):
    """`naive(layers, x)` gives the block's output, and its statistics after training on x."""
    variables = block_variables(block, x)
    apply = jax.jit(lambda v: block.apply(v, jnp.asarray(x), train, mutable=["batch_stats"]))
    output, after = apply(variables)
    layers = NaiveLayers(variables, train)
    assert_close(output, naive(layers, x.astype(np.float64)))
    if train:
        assert set(layers.after) == set(after["batch_stats"])
        jax.tree.map(assert_close, after["batch_stats"], layers.after)
    else:
        jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


def assert_model_equals(model, naive, x):
    """`naive(layers, x)` gives the model's features of each stage and its logits, in evaluation."""
    variables = random_variables(model, x.shape[1:])
    # Scaled, as random positive weights multiply the signal in each layer.
    scale = jax.tree.map(lambda v: v / np.prod(v.shape[:-1]) if v.ndim > 1 else v, variables)
    apply = jax.jit(lambda v: model.apply(v, x, train=False, mutable=["features"]))
    logits, sown = apply(scale)
    features, expected = naive(NaiveLayers(scale, train=False), x.astype(np.float64))
    assert set(sown["features"]) == set(features)
    for stage, arrays in features.items():
        assert len(sown["features"][stage]) == len(arrays)
        for array, naive_array in zip(sown["features"][stage], arrays, strict=True):
            assert_close(array, naive_array)
    assert_close(logits, expected)


def assert_close(one, two):
    size = np.abs(two).max()
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * max(size, 1e-2))
