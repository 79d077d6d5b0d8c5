"""The energies that a penalty may sum in place of the similarities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cka_sr_jax.similarity import cca_matrix, cca_penalty, cka_matrix, cka_penalty
from cka_sr_jax.similarity.energies import energy_of

NAIVE = {
    "none": lambda s: s,
    "log": lambda s: math.log(1 / (math.acos(s / 1.0003) + 1e-3)),
    "inverse": lambda s: 1.001 / (math.acos(s / 1.0003) + 1e-3),
    "inverse_square": lambda s: 1.001 / (math.acos(s / 1.0003) ** 2 + 1e-3),
}


@pytest.mark.parametrize("energy", NAIVE)
@given(s=st.floats(-1, 1, width=32))
def test_energies_are_their_formulas(energy, s):
    # arccos loses digits near 1 in float32: 1e-7 of the similarity is 2e-6 of the angle there.
    np.testing.assert_allclose(energy_of(jnp.float32(s), energy), NAIVE[energy](s), rtol=1e-3)


@pytest.mark.parametrize("energy", NAIVE)
def test_energies_rise_with_the_similarity_and_stay_finite(energy):
    s = jnp.linspace(-1, 1, 201)
    values, slopes = jax.vmap(jax.value_and_grad(lambda x: energy_of(x, energy)))(s)
    assert np.all(np.diff(values) > 0)
    assert np.all(np.isfinite(slopes))
    assert np.all(slopes > 0)
    assert energy == "none" or slopes[-1] > 100 * slopes[100]  # at 1 against at 0
    # A similarity a rounding beyond 1 is that of equal layers.
    assert np.isfinite(energy_of(jnp.float32(1 + 1e-6), energy))
    assert np.isfinite(energy_of(jnp.float32([-1.01, 1.01]), energy)).all()


@pytest.mark.parametrize("energy", ["log", "inverse", "inverse_square"])
def test_a_penalty_sums_the_energy_over_its_pairs(energy):
    x = jax.random.normal(jax.random.key(0), (4, 12, 6))
    features = {"a": (x[0], x[0] + x[1], x[2]), "b": (x[2], x[3])}
    matrix, other = np.asarray(cka_matrix(features)), np.asarray(cca_matrix(features))
    for penalty, similarity in ((cka_penalty, matrix), (cca_penalty, other)):
        near = [(0, 1), (1, 2), (3, 4)]
        expected = 2 * sum(NAIVE[energy](similarity[i, j]) for i, j in near)
        found = penalty(features, energy=energy, pairs="neighbors")
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        far = expected + 2 * 0.25 * NAIVE[energy](similarity[0, 2])
        np.testing.assert_allclose(penalty(features, energy=energy, decay=0.25), far, rtol=1e-4)


def test_the_gradient_parts_layers_that_are_all_but_equal():
    """The plain sum hardly pushes there: its gradient falls with the distance, an energy's less."""
    x, noise = jax.random.normal(jax.random.key(0), (2, 32, 8))

    def push(energy, distance):
        return jnp.linalg.norm(
            jax.grad(lambda y: cka_penalty((x, y), energy=energy))(x + distance * noise)
        )

    plain = push("none", 0.01) / push("none", 0.1)
    assert plain < 0.15
    assert push("log", 0.01) / push("log", 0.1) > 3 * plain


def test_constant_features_add_no_gradient():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    grads = jax.grad(lambda y: cka_penalty((x, y), energy="log"))(jnp.ones((8, 3)))
    assert not np.any(grads)


def test_an_unknown_energy_is_refused():
    x = jnp.ones((8, 3))
    with pytest.raises(ValueError, match="energy='quadratic' is unknown: use 'none', 'log'"):
        cka_penalty((x, x), energy="quadratic")
