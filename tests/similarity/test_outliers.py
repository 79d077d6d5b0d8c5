"""The share of variance in outliers, against a sorted loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.similarity import cka, outlier_share


def test_outlier_share_is_that_of_a_sorted_loop():
    x = np.array(jax.random.normal(jax.random.key(7), (50, 3, 4)) + 1)
    x[3] *= 10
    mean = sum(x) / len(x)
    distances = sorted(((row - mean) ** 2).sum() for row in x)
    for fraction, count in ((0.01, 1), (0.04, 2), (1.0, 50)):
        expected = sum(distances[-count:]) / sum(distances)
        np.testing.assert_allclose(outlier_share(jnp.array(x), fraction), expected, rtol=1e-5)


def test_outlier_share_of_samples_that_are_equally_far_or_all_the_same():
    signs = jnp.array([1.0, -1.0] * 50)[:, None]
    np.testing.assert_allclose(outlier_share(1000 + 3 * signs), 0.01, rtol=1e-5)
    assert outlier_share(jnp.ones((8, 3))) == 0
    for bad in (jnp.nan, jnp.inf):  # no number, as CKA of it
        assert jnp.isnan(outlier_share(jnp.ones((8, 3)).at[2, 1].set(bad)))


def test_a_growing_sample_lowers_cka_and_shows_as_an_outlier():
    """One of 100 samples grows in one of two equal features."""
    x = jax.random.normal(jax.random.key(0), (100, 20))
    values = [(cka(x, y), outlier_share(y)) for y in (x.at[0].mul(s) for s in (1.0, 10.0, 100.0))]
    assert values[0][0] == pytest.approx(1)
    assert values[0][0] > values[1][0] > values[2][0]
    assert values[0][1] < 0.03
    assert values[2][1] > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: outlier_share(jnp.ones((8, 2)), 0.0), r"fraction=0.0 is not in \(0, 1\]"),
        (lambda: outlier_share(jnp.ones((0, 2))), r"n >= 1 samples, not one of shape \(0, 2\)"),
        (lambda: outlier_share(jnp.ones(())), r"not one of shape \(\)"),
        (lambda: outlier_share((jnp.ones((8, 2)),)), "not a tuple: call it for each feature"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
