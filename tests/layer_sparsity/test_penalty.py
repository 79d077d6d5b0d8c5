"""The layer penalty against its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    layer_penalty,
    negative_norm,
)
from tests.layer_sparsity.chains import (
    naive_norm,
    random_jax_chain,
)


def test_negative_norm_is_the_norm_of_the_negative_part():
    (kernel, bias), *_ = random_jax_chain(0)
    assert negative_norm(kernel) == pytest.approx(naive_norm(kernel), rel=1e-6)
    assert negative_norm(Affine(kernel, bias)) == pytest.approx(naive_norm(kernel, bias), rel=1e-6)


def test_negative_norm_has_its_gradient_and_0_where_there_is_none():
    kernel = random_jax_chain(0)[0].kernel
    expected = np.minimum(kernel, 0) / naive_norm(kernel)
    np.testing.assert_allclose(jax.grad(negative_norm)(kernel), expected, rtol=1e-5)
    for array in (jnp.zeros((2, 3)), jnp.ones((2, 3))):
        value, gradient = jax.value_and_grad(negative_norm)(array)
        assert value == 0
        assert not np.any(gradient)


def test_negative_norm_neither_over_nor_underflows():
    for size in (1e-30, 1e30):
        value, gradient = jax.value_and_grad(negative_norm)(jnp.array([-3 * size, -4 * size]))
        assert value == pytest.approx(5 * size, rel=1e-6)
        np.testing.assert_allclose(gradient, [-0.6, -0.8], rtol=1e-6)
    assert negative_norm(jnp.full(4, -1, jnp.bfloat16)).dtype == jnp.float32
    assert np.isnan(negative_norm(jnp.array([jnp.nan, -1.0])))


def test_the_penalty_leaves_out_the_first_and_the_last_layer():
    chain = random_jax_chain(1)
    norms = [naive_norm(*layer) for layer in chain]
    assert layer_penalty(chain) == pytest.approx(norms[1] + norms[2], rel=1e-6)
    assert layer_penalty(chain, [2.0, 0.5]) == pytest.approx(2 * norms[1] + norms[2] / 2, rel=1e-6)
    assert layer_penalty(chain, nonnegative_input=True) == pytest.approx(sum(norms[:3]), rel=1e-6)
    assert layer_penalty(chain[:1]) == 0
    with pytest.raises(ValueError, match="3 weights for 2 penalized layers"):
        layer_penalty(chain, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"weights=0.1 for 2 penalized layers: pass one weight"):
        layer_penalty(chain, 0.1)


invariant_penalty = jax.jit(functools.partial(layer_penalty, scale_invariant=True))


def rescaled(chain, factors):
    """The same function: the output of hidden layer j times c_j, c_j > 0."""
    factors = [1.0, *factors, 1.0]
    return tuple(
        Affine(kernel * (c / before), bias * c)
        for (kernel, bias), before, c in zip(chain, factors, factors[1:], strict=False)
    )


def test_the_scale_invariant_form_does_not_change_under_rescaling():
    chain = random_jax_chain(2)
    same = rescaled(chain, [3.0, 0.01, 50.0])
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(apply_chain(same, x), apply_chain(chain, x), rtol=1e-4)
    value = float(invariant_penalty(chain))
    assert invariant_penalty(same) == pytest.approx(value, rel=1e-5)
    assert abs(layer_penalty(same) / layer_penalty(chain) - 1) > 0.5  # the loophole


def test_the_scale_invariant_form_agrees_with_its_formula():
    chain = random_jax_chain(3)
    expected, size = 0.0, 1.0
    for j, (kernel, bias) in enumerate(chain):
        norm = np.linalg.norm(kernel)
        size *= norm / np.sqrt(len(bias))
        if j in (1, 2):
            expected += naive_norm(kernel / norm, bias / (np.sqrt(len(bias)) * size))
    assert invariant_penalty(chain) == pytest.approx(expected, rel=1e-5)
    zero = jax.tree.map(jnp.zeros_like, chain)
    gradient = jax.jit(jax.grad(lambda c: layer_penalty(c, scale_invariant=True)))(zero)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
