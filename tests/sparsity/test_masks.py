"""Masks as pytrees, and what is measured on them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    apply_masks,
    churn,
    density,
    epsilon_sparsity,
    explored,
    make_rule,
    rescale_kept,
)
from tests.sparsity.naive import COMMON, END, run


def test_density_counts_masks_not_values():
    masks = {"w": jnp.array([[True, True], [False, False]]), "b": optax.MaskedNode()}
    params = apply_masks({"w": jnp.zeros((2, 2)), "b": jnp.ones(2)}, masks)
    assert density(masks) == 0.5
    np.testing.assert_array_equal(params["b"], jnp.ones(2))


def test_epsilon_sparsity_counts_small_weights_and_zeros():
    params = {"kernel": jnp.array([[0.0, 0.5], [-2e-3, 1e-3]]), "bias": jnp.zeros(2)}
    assert epsilon_sparsity(params, 1e-3) == 0.25
    assert epsilon_sparsity(params, 3e-3) == 0.75
    two = {"mid": params, "head": {"kernel": jnp.ones((2, 2))}}
    assert epsilon_sparsity(two, 3e-3, exclude="mid") == 0
    with pytest.raises(ValueError, match="epsilon=0 is not positive"):
        epsilon_sparsity(params, 0)


def test_masks_that_do_not_fit_are_never_applied():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    masks = {"w": jnp.ones((1, 5), bool), "b": optax.MaskedNode()}
    for apply in (apply_masks, rescale_kept):
        with pytest.raises(ValueError, match=r"mask of w has shape \(1, 5\) and the parameter"):
            apply(params, masks)


def test_rescaled_weights_keep_the_signal():
    """In each unit the kept weights have the norm that all its weights had."""
    rng = np.random.default_rng(0)
    params = {"conv": rng.standard_normal((3, 3, 4, 5)).astype(np.float32), "bias": np.ones(5)}
    masks = {"conv": jnp.asarray(rng.random((3, 3, 4, 5)) < 0.3).at[..., 2].set(False)}
    masks["bias"] = optax.MaskedNode()
    scaled = rescale_kept(params, masks)
    for unit in range(5):
        kept = np.asarray(masks["conv"][..., unit])
        weights = params["conv"][..., unit]
        factor = np.linalg.norm(weights) / np.linalg.norm(weights[kept]) if kept.any() else 0
        expected = np.where(kept, weights * factor, 0)
        np.testing.assert_allclose(scaled["conv"][..., unit], expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled["bias"], params["bias"])
    # A unit's output has the variance of the dense one's, whatever its density, also where the
    # largest weights are kept.
    x = rng.standard_normal((20_000, 400)).astype(np.float32)
    w = rng.standard_normal((400, 3)).astype(np.float32) / 20
    random = jnp.asarray(rng.random((400, 3)) < np.array([0.05, 0.3, 1.0]))
    for mask in (random, jnp.abs(w) > 0.1):
        spread = np.std(x @ np.asarray(rescale_kept({"w": w}, {"w": mask})["w"]), axis=0)
        np.testing.assert_allclose(spread, 1, atol=0.1)


def test_exploration_and_churn():
    a = {"w": jnp.array([True, True, False, False]), "b": optax.MaskedNode()}
    b = {"w": jnp.array([True, False, True, False]), "b": optax.MaskedNode()}
    assert churn(a, b) == 0.5
    assert churn(a, a) == 0
    assert density(explored(a, b)) == 0.75
    assert isinstance(explored(a, b)["b"], optax.MaskedNode)
    dense = {"b": optax.MaskedNode()}
    assert churn(dense, dense) == 0
    history = run(make_rule("set", **COMMON), END + 1)
    union = history[0]
    for masks in history:
        union = explored(union, masks)
    assert density(history[0]) < density(union) < 1
