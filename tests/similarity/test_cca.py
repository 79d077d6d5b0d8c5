"""Regularized CCA against canonical correlations and a naive eigenvalue formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.similarity import cca_matrix, cca_penalty, cka_matrix

# Eager dispatch is slow.
cca_matrix = jax.jit(cca_matrix, static_argnames=("ridge", "debiased"))
jit_penalty = jax.jit(cca_penalty, static_argnames=("samples", "pairs", "reduction"))


def features(n=30, widths=(3, 3, 5), seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 2))
    return [
        np.concatenate([shared @ rng.normal(size=(2, 2)), rng.normal(size=(n, w - 2))], axis=1)
        for w in widths
    ]


def naive(x, y, ridge):
    """By the eigenvectors of the centered Grams: P = V diag(e / (e + ridge mean(e))) V'.

    Returns the biased value and the debiased one, by Song et al.'s formula for HSIC.
    """

    def whitened(x):
        x = x.reshape(len(x), -1)
        x = x - x.mean(axis=0)
        values, vectors = np.linalg.eigh(x @ x.T)
        return (vectors * (values / (values + ridge * values.mean()))) @ vectors.T

    def unbiased(p, q):
        n = len(p)
        p, q = p * (1 - np.eye(n)), q * (1 - np.eye(n))
        means = p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * (p @ q).sum() / (n - 2)
        return np.trace(p @ q) + means

    def ratio(hsic):
        return hsic(p, q) / np.sqrt(hsic(p, p) * hsic(q, q))

    p, q = whitened(x), whitened(y)
    return ratio(lambda p, q: np.sum(p * q)), ratio(unbiased)


def test_without_a_ridge_it_is_the_mean_squared_canonical_correlation(enable_x64):
    x, y, _ = features()
    bases = [np.linalg.qr(a - a.mean(axis=0))[0] for a in (x, y)]
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    actual = cca_matrix((x, y), ridge=1e-10, debiased=False)[0, 1]
    np.testing.assert_allclose(actual, np.mean(correlations**2), rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 10.0])
def test_it_is_the_naive_formula(ridge):
    xs = [x.reshape(len(x), -1) for x in features(widths=(4, 6, 40))]
    arrays = [jnp.asarray(x) for x in xs]
    matrices = [cca_matrix(arrays, ridge=ridge, debiased=debiased) for debiased in (False, True)]
    for i, x in enumerate(xs):
        for j, y in enumerate(xs):
            for matrix, expected in zip(matrices, naive(x, y, ridge), strict=True):
                np.testing.assert_allclose(matrix[i, j], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("n", "width"), [(20, 60), (128, 4096), (8, 500)])
def test_independent_wide_features_are_not_alike(n, width):
    """Biased they read near 1; debiased near 0, as CKA does."""
    x, y = jax.random.normal(jax.random.key(0), (2, n, width))
    assert cca_matrix((x, y), debiased=False)[0, 1] > 0.9
    assert abs(cca_matrix((x, y))[0, 1]) < 0.4


@pytest.mark.parametrize("debiased", [True, False])
def test_a_large_ridge_makes_it_cka(debiased):
    xs = [jnp.asarray(x) for x in features()]
    actual = cca_matrix(xs, ridge=1e4, debiased=debiased)
    # P is of the centered Gram, whose diagonal the unbiased HSIC leaves out: near CKA, not equal.
    np.testing.assert_allclose(
        actual, cka_matrix(xs, debiased=debiased), atol=0.1 * debiased + 1e-3
    )


def test_an_invertible_map_changes_little_at_a_small_ridge_and_much_in_cka(enable_x64):
    x, y, _ = features()
    mapped = x @ np.diag([10.0, 1.0, 0.1])
    np.testing.assert_allclose(
        cca_matrix((x, y), ridge=1e-9)[0, 1], cca_matrix((mapped, y), ridge=1e-9)[0, 1], rtol=1e-5
    )
    assert abs(cka_matrix((x, y))[0, 1] - cka_matrix((mapped, y))[0, 1]) > 0.05


def test_the_penalty_sums_ordered_pairs_within_groups_and_has_a_gradient():
    a, b, c = (jnp.asarray(x, jnp.float32) for x in features(n=8, widths=(12, 9, 7)))
    groups = {"stage1": (a, b), "stage2": (c,)}
    matrix = cca_matrix((a, b, c))
    np.testing.assert_allclose(jit_penalty(groups), 2 * matrix[0, 1], rtol=1e-5)
    np.testing.assert_allclose(
        jit_penalty(groups, pairs="all", reduction="mean"),
        np.mean([matrix[0, 1], matrix[0, 2], matrix[1, 2]]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jit_penalty(groups, samples=6), 2 * cca_matrix((a[:6], b[:6]))[0, 1], rtol=1e-5
    )
    direction = jax.random.normal(jax.random.key(0), a.shape)
    direction /= jnp.linalg.norm(direction)

    @jax.jit
    def along(t):
        return cca_penalty({"stage1": (a + t * direction, b)})

    numeric = (along(1e-2) - along(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), numeric, rtol=2e-2)


def test_a_constant_feature_has_value_and_gradient_zero():
    x = jnp.asarray(features(n=8)[0], jnp.float32)
    constant = jnp.ones((8, 3))
    value, grad = jax.jit(jax.value_and_grad(lambda c: cca_penalty((x, c))))(constant)
    assert value == 0
    assert not np.asarray(grad).any()
    assert cca_matrix((x, constant))[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, r"ridge=0.0 is not positive"),
        ({"samples": 9}, "samples=9 in batches=1 needs 9 samples and the batch has 8"),
        ({"samples": 3}, "3 samples are too few"),
        ({"samples": 1, "debiased": False}, "1 samples are too few"),
        ({"pairs": "stage"}, "pairs='stage' is unknown"),
        ({"reduction": "max"}, "reduction='max' is unknown"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        cca_penalty((jnp.ones((8, 3)), jnp.ones((8, 2))), **options)
