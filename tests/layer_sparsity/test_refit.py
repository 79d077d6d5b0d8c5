"""The refit: penalties against their formulas, dead units, cold start."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    drop_dead_units,
    l1_penalty,
    random_like,
    row_group_penalty,
)
from tests.layer_sparsity.chains import random_jax_chain


def test_refit_penalties_agree_with_their_formulas():
    chain = random_jax_chain(5)
    rows = sum(np.linalg.norm(u) for layer in chain[:-1] for u in np.asarray(layer.kernel).T)
    assert jax.jit(row_group_penalty)(chain) == pytest.approx(rows, rel=1e-6)
    total = sum(np.abs(layer.kernel).sum() for layer in chain)
    assert l1_penalty(chain) == pytest.approx(total, rel=1e-6)
    gradient = jax.jit(jax.grad(row_group_penalty))(jax.tree.map(jnp.zeros_like, chain))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("taps", [(), (2, 1)])
def test_dead_units_are_dropped_and_the_function_stays(taps):
    rng = np.random.default_rng(7)
    sizes = (3, 6, 5, 4, 2)
    chain = [
        Affine(rng.normal(size=(*taps, *shape)), rng.normal(size=shape[1]))
        for shape in itertools.pairwise(sizes)
    ]
    chain[0].kernel[..., [1, 4]] = 0  # constant units
    chain[0].bias[1] = 2.0
    chain[1].kernel[..., :, 3] = 0  # constant
    chain[1].kernel[..., [0, 1, 4, 5], 2] = 0  # only input 2 and 3 feed unit 2
    chain[2].kernel[..., 1, :] = 0  # unit 1 of layer 1 is not used
    smaller = drop_dead_units(chain)
    assert [len(layer.bias) for layer in smaller] == [4, 3, 4, 2]
    x = rng.normal(size=(5, 7, 6, 3) if taps else (5, 3)).astype(np.float32)
    y = apply_chain(jax.tree.map(jnp.float32, chain), x)
    same = apply_chain(jax.tree.map(jnp.float32, smaller), x)
    np.testing.assert_allclose(same, y, rtol=1e-4, atol=1e-4)
    # Where all die one unit stays, and the output is the same constant.
    dead = [layer._replace(kernel=layer.kernel * 0) for layer in chain[:-1]] + chain[-1:]
    smaller = drop_dead_units(dead)
    assert [len(layer.bias) for layer in smaller] == [1, 1, 1, 2]
    np.testing.assert_allclose(
        apply_chain(jax.tree.map(jnp.float32, smaller), x),
        apply_chain(jax.tree.map(jnp.float32, dead), x),
        rtol=1e-5,
    )


def test_a_cold_start_has_he_normal_weights_of_the_same_shapes():
    chain = random_jax_chain(6, (50, 200, 100))
    fresh = random_like(chain, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, chain)
    for kernel, bias in fresh:
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / len(kernel)), rel=0.05)
        assert not np.any(bias)
