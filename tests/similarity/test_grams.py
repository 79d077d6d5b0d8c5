"""Scaled and centered Grams against NumPy's plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.similarity.grams import (
    center,
    centered_grams,
    feature_groups,
    feature_leaves,
    rbf_grams,
    scaled_grams,
    split_samples,
)


def features(n=10):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (n, i + 2, 3)) * 5 + 2 for i, key in enumerate(keys)]


def test_groups_are_the_keys_of_a_mapping_or_all():
    x, y, z = features()
    groups = feature_groups({"late": (x, y), "early": {"b": z, "a": x}})
    assert [len(group) for group in groups] == [2, 2]
    assert groups[0][0] is x
    assert [len(group) for group in feature_groups((x, (y, z)))] == [3]
    assert [leaf.shape for leaf in feature_leaves({"b": (z,), "a": x})] == [z.shape, x.shape]


def test_sub_batches_are_consecutive_and_samples_are_flattened():
    (part,) = split_samples([features()[1]], samples=4, batches=2, debiased=True)
    np.testing.assert_array_equal(part, features()[1][:8].reshape(2, 4, 9))
    (part,) = split_samples([jnp.ones((9, 2), jnp.bfloat16)], None, 2, debiased=True)
    assert part.shape == (2, 4, 2)
    assert part.dtype == jnp.float32


def test_scaled_grams_times_their_scales_are_those_of_the_shifted_features():
    parts = split_samples(features(), None, 1, debiased=True)
    grams, scales = scaled_grams(parts, axis_name=None)
    assert grams.shape == (1, 3, 10, 10)
    np.testing.assert_allclose(np.trace(grams[0], axis1=1, axis2=2) / 10, np.ones(3), rtol=1e-5)
    for gram, scale, part in zip(grams[0], scales, parts, strict=True):
        shifted = np.asarray(part[0] - part[0, :1])
        np.testing.assert_allclose(gram * scale, shifted @ shifted.T, rtol=1e-4, atol=1e-3)


def test_centered_grams_are_hkh():
    h = np.eye(10) - 1 / 10
    for gram, x in zip(centered_grams(features()), features(), strict=True):
        x = np.asarray(x).reshape(10, -1)
        expected = h @ x @ x.T @ h
        scale = np.trace((x - x[0]) @ (x - x[0]).T) / 10
        np.testing.assert_allclose(gram * scale, expected, rtol=1e-3, atol=1e-3)


def test_u_centered_grams_have_no_diagonal_and_no_row_sums():
    grams, _ = scaled_grams(split_samples(features(), None, 1, debiased=True), None)
    centered = center(grams, debiased=True)
    np.testing.assert_array_equal(np.diagonal(centered, axis1=2, axis2=3), np.zeros((1, 3, 10)))
    np.testing.assert_allclose(centered.sum(-1), np.zeros((1, 3, 10)), atol=1e-5)


@pytest.mark.parametrize("debiased", [True, False])
def test_what_is_rounding_error_only_becomes_zero(debiased):
    constant = jnp.full((1, 1, 8, 8), 1000.1)
    assert not np.any(center(constant, debiased))


def test_rbf_grams_take_half_the_median_distance_for_bandwidth():
    x = np.asarray(features()[0]).reshape(10, -1)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    expected = np.exp(-distances / (2 * 0.25 * np.median(distances)))
    np.testing.assert_allclose(rbf_grams(jnp.asarray(x @ x.T)[None, None])[0, 0], expected, 1e-3)
