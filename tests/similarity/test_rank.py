"""Ranks of features against planted ones, NumPy and scikit-learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from cka_sr_jax.similarity import (
    classification_dimension,
    effective_rank,
    independence_deficit,
    partial_rank,
    perturbed_pca_rank,
)

RNG = np.random.default_rng(0)
EPS = 2.0**-23


def planted(rank, inputs=24, width=20):
    """A matrix [inputs, width] of this rank."""
    left, right = RNG.normal(size=(inputs, rank)), RNG.normal(size=(rank, width))
    return jnp.asarray(left @ right, jnp.float32)


@pytest.mark.parametrize("rank", [0, 1, 3, 12, 20])
def test_planted_ranks_are_recovered(rank):
    matrix, x = planted(rank), jnp.asarray(RNG.normal(size=24), jnp.float32)
    near = perturbed_pca_rank(lambda x: jnp.tanh(x / 8) @ matrix, x, jax.random.key(0), copies=500)
    assert int(near) == rank
    assert int(partial_rank(lambda x: jnp.tanh(x / 8) @ matrix, x)) == rank


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_a_chain_of_layers_has_the_rank_of_its_narrowest(first, second, third):
    widths = [6, first, second, third]
    layers = [jnp.asarray(RNG.normal(size=s), jnp.float32) for s in itertools.pairwise(widths)]

    def features(x):
        found = []
        for layer in layers:
            found.append(x := x @ layer)
        return tuple(found)

    x = jnp.ones(6)
    expected = [min(widths[: i + 2]) for i in range(3)]
    ranks = perturbed_pca_rank(features, x, jax.random.key(1), copies=200)
    assert [int(rank) for rank in ranks] == expected
    assert [int(rank) for rank in partial_rank(features, x)] == expected


def test_the_ranks_are_those_of_the_published_procedure_in_numpy():
    """Eigenvalues of the covariance of perturbed features and of J'J, by their stated threshold."""
    weights = [jnp.asarray(RNG.normal(size=(12, 12)) / 3, jnp.float32) for _ in range(3)]

    def features(x):
        for weight in weights:
            x = jax.nn.relu(x @ weight)
        return x

    x, key = jnp.asarray(RNG.normal(size=12), jnp.float32), jax.random.key(2)
    noise = np.asarray(jax.random.normal(key, (400, 12)))
    flat = np.asarray(features(x[None] + 1e-3 * noise), np.float64)
    centered = flat - flat.mean(axis=0)
    values = np.linalg.eigvalsh(centered.T @ centered / 400)
    near = perturbed_pca_rank(features, x, key, copies=400)
    assert int(near) == (values >= values.max() * 12 * EPS).sum()

    jacobian = np.asarray(jax.jacrev(features)(x), np.float64)[:, 3:7]
    values = np.linalg.eigvalsh(jacobian.T @ jacobian)
    assert int(partial_rank(features, x, np.s_[3:7])) == (values >= values.max() * 4 * EPS).sum()


def test_a_patch_of_an_image_is_a_part_of_its_axes():
    image = jnp.asarray(RNG.normal(size=(6, 6, 2)), jnp.float32)

    def features(image):
        return {"sums": image.sum((0, 1)), "corner": image[:2, :2], "patch": image[2:5, 2:5]}

    ranks = partial_rank(features, image, np.s_[2:5, 2:5])
    assert {name: int(rank) for name, rank in ranks.items()} == {
        "sums": 2,
        "corner": 0,
        "patch": 3 * 3 * 2,
    }


@given(st.integers(2, 12), st.integers(1, 8))
def test_effective_rank_is_the_exponential_of_the_entropy(samples, width):
    x = RNG.normal(size=(samples, width))
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    shares = values[values > 1e-12] / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    np.testing.assert_allclose(effective_rank(jnp.asarray(x, jnp.float32)), expected, rtol=1e-3)
    np.testing.assert_allclose(effective_rank(x), expected, rtol=1e-6)
    assert expected <= min(samples - 1, width) * (1 + 1e-6)


def test_effective_rank_of_a_tree_flattens_each_feature():
    x = jnp.asarray(RNG.normal(size=(9, 2, 3)), jnp.float32)
    ranks = effective_rank({"a": x, "b": (x.reshape(9, 6), jnp.ones((9, 4)))})
    np.testing.assert_allclose(ranks["a"], ranks["b"][0], rtol=1e-6)
    assert ranks["b"][1] == 0
    for constant in (0.1, 1 / 3, -7e8):  # whose mean is rounded
        for x in (np.full((100, 64), constant), np.full((7, 3), constant, np.float32)):
            assert effective_rank(x) == effective_rank(jnp.asarray(x, jnp.float32)) == 0


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_effective_rank_of_infinite_features_is_not_a_number(bad):
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    x[2, 1] = bad
    assert np.isnan(effective_rank(x))
    assert np.isnan(effective_rank(jnp.asarray(x)))


def test_the_classes_need_the_directions_that_tell_them_apart():
    """Ten directions, of which the strongest three decide; then the weakest."""
    scales = 2.0 ** np.arange(10, 0, -1)
    features = jnp.asarray(RNG.normal(size=(400, 10)) * scales, jnp.float32)
    mixed, _ = np.linalg.qr(RNG.normal(size=(10, 10)))
    mixed = jnp.asarray(mixed, jnp.float32)
    for places, expected in ((np.s_[:3], 3), (np.s_[7:], 10)):
        labels = jnp.argmax(features[:, places], axis=1)
        found = classification_dimension(
            features @ mixed, labels, lambda f, places=places: (f @ mixed.T)[:, places], share=0.99
        )
        assert found == expected


def test_the_projection_is_not_centered():
    """All features have a mean that no direction of their covariance holds: the head misses it."""
    features = RNG.normal(size=(200, 3)) * [3, 2, 0] + [0, 0, 9]
    features = jnp.asarray(features, jnp.float32)
    labels = (features[:, 0] > 0).astype(jnp.int32)

    def head(f):  # class 1 where the first is positive, if the mean is there
        return jnp.stack([jnp.zeros(len(f)), jnp.where(f[:, 2] > 5, f[:, 0], -1.0)], axis=1)

    assert classification_dimension(features, labels, head) == 3


@pytest.mark.parametrize("strength", [0.0, 0.3, 20.0])
def test_the_lasso_is_scikit_learns(strength):
    base = RNG.normal(size=(300, 3)) * 4
    logits = np.column_stack([base, base[:, 0] - base[:, 1] + RNG.normal(size=300)])
    found = independence_deficit(jnp.asarray(logits, jnp.float32), strength=strength)
    for i in range(4):
        others = np.delete(np.arange(4), i)
        if strength:
            model = Lasso(strength / 2, fit_intercept=False, tol=1e-10, max_iter=100_000)
            expected = model.fit(logits[:, others], logits[:, i]).coef_
        else:
            expected = np.linalg.lstsq(logits[:, others], logits[:, i], rcond=None)[0]
        np.testing.assert_allclose(found.weights[i, others], expected, atol=1e-3)
        assert found.weights[i, i] == 0
        left = logits[:, i] - logits[:, others] @ expected
        unexplained = (left**2).mean() / (logits[:, i] ** 2).mean()
        np.testing.assert_allclose(found.unexplained[i], unexplained, atol=1e-3)


def test_infinite_features_have_no_rank():
    x = jnp.ones(3)
    for scale in (jnp.nan, jnp.inf):
        bad = perturbed_pca_rank(lambda x, s=scale: s * x, x, jax.random.key(0), copies=10)
        assert int(bad) == int(partial_rank(lambda x, s=scale: s * x, x)) == -1


def test_too_few_examples_for_the_head_are_refused():
    features = jnp.eye(4, 6) + 5
    with pytest.raises(ValueError, match="all 4 principal directions of 4 features give less than"):
        classification_dimension(
            features,
            jnp.zeros(4, jnp.int32),
            lambda f: jnp.stack([f[:, 5] - 4, 1 - f[:, 5]], axis=1),
        )


def test_bad_input_is_refused():
    features, labels = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)
    for call, message in (
        (lambda: classification_dimension(features, labels[:3], lambda f: f), "do not fit"),
        (lambda: classification_dimension(features, labels, lambda f: f, share=2), "share=2"),
        (lambda: independence_deficit(jnp.ones((4, 1))), "at least two classes"),
        (lambda: independence_deficit(jnp.ones((4, 2)), strength=-1), "strength=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
