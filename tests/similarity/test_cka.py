"""CKA against naive loops, published values and its own invariances."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from cka_sr_jax.similarity import (
    cka,
    cka_from_hsic,
    cka_matrix,
    cka_penalty,
    hsic_matrix,
)

jit_cka = jax.jit(cka, static_argnames=("kernel", "debiased"))  # eager dispatch is slow


def naive_hsic(x, y, debiased):
    """HSIC by the textbook formulas in float64: traces of full matrices, no U-centering."""
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    n = len(x)
    k, m = x @ x.T, y @ y.T
    if not debiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h) / (n - 1) ** 2
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def naive_cka(x, y, debiased=True):
    return naive_hsic(x, y, debiased) / np.sqrt(
        naive_hsic(x, x, debiased) * naive_hsic(y, y, debiased)
    )


def u_statistic_hsic(x, y):
    """HSIC as the mean of its kernel over all ordered 4-tuples (Song et al., eq. 4)."""
    k, m = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for four in itertools.combinations(range(len(x)), 4):
        for t, u, v, w in itertools.permutations(four):
            total += k[t, u] * m[t, u] + k[t, u] * m[v, w] - 2 * k[t, u] * m[t, v]
            count += 1
    return total / count


def random_features(key, n=16, widths=((3, 4), (5,), (2, 2, 2))):
    keys = jax.random.split(jax.random.key(key), len(widths))
    shared = jax.random.normal(jax.random.key(99), (n, 1))
    return [
        jax.random.normal(k, (n, *w)) + shared.reshape(n, *[1] * len(w))
        for k, w in zip(keys, widths, strict=True)
    ]


def stages(key=0, n=8, sizes=(3, 3, 3)):
    keys = iter(jax.random.split(jax.random.key(key), sum(sizes)))
    return {
        f"stage{i}": tuple(jax.random.normal(next(keys), (n, 6, i + 2)) for _ in range(size))
        for i, size in enumerate(sizes)
    }


def golden_features():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize(
    ("options", "expected", "tolerance"),
    [
        ({"debiased": False}, 0.557613, 1e-6),
        ({}, 0.513456, 1e-6),
        ({"debiased": False, "kernel": "rbf"}, 0.6548, 1e-4),
    ],
)
def test_published_values(options, expected, tolerance):
    x, y = golden_features()
    np.testing.assert_allclose(cka(jnp.array(x), jnp.array(y), **options), expected, atol=tolerance)


@pytest.mark.usefixtures("enable_x64")
def test_debiased_hsic_is_the_u_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(9, 3)) ** 2
    hsic = hsic_matrix((jnp.array(x), jnp.array(y)))
    for i, j in itertools.product(range(2), repeat=2):
        a, b = (x, y)[i], (x, y)[j]
        np.testing.assert_allclose(hsic[i, j], u_statistic_hsic(a, b), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize("debiased", [True, False])
def test_hsic_matrix_is_the_naive_one(debiased):
    features = [jnp.array(x, jnp.float64) * 3 + 2 for x in random_features(0)]
    hsic = hsic_matrix(features, debiased=debiased)
    for i, j in itertools.product(range(3), repeat=2):
        expected = naive_hsic(features[i], features[j], debiased)
        np.testing.assert_allclose(hsic[i, j], expected, rtol=1e-9)
    np.testing.assert_allclose(
        cka_matrix(features, debiased=debiased), cka_from_hsic(hsic), rtol=1e-9, atol=1e-12
    )


@pytest.mark.usefixtures("enable_x64")
def test_rbf_cka_is_the_naive_one():
    x, y = (np.asarray(a, np.float64).reshape(16, -1) for a in random_features(3)[:2])

    def gram(z):
        d2 = ((z[:, None] - z[None]) ** 2).sum(-1)
        return np.exp(-d2 / (2 * 0.25 * np.median(d2)))

    k, m, h = gram(x), gram(y), np.eye(16) - 1 / 16
    centered = [h @ g @ h for g in (k, m)]
    expected = np.sum(centered[0] * centered[1]) / np.prod([np.linalg.norm(c) for c in centered])
    actual = cka(jnp.array(x), jnp.array(y), kernel="rbf", debiased=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def naive_penalty(features):
    """The paper's ordered double sum within every stage, less its constant diagonal, in jnp."""

    def gram(x):
        x = x.reshape(x.shape[0], -1)
        return x @ x.T * (1 - jnp.eye(x.shape[0]))

    def hsic(k, m):
        n = k.shape[0]
        return (
            jnp.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        ) / (n * (n - 3))

    total, layers = 0.0, 0
    for blocks in features.values():
        layers += len(blocks)
        for x, y in itertools.product(blocks, repeat=2):
            k, m = gram(x), gram(y)
            total += hsic(k, m) / (jnp.sqrt(hsic(k, k)) * jnp.sqrt(hsic(m, m)))
    return total - layers


def test_penalty_is_the_papers_double_sum_in_value_and_gradient():
    features = stages()
    value, grad = jax.jit(jax.value_and_grad(cka_penalty))(features)
    expected, expected_grad = jax.jit(jax.value_and_grad(naive_penalty))(features)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad, expected_grad)


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("function", [cka_penalty, lambda f, **o: hsic_matrix(f, **o).sum()])
def test_gradient_is_the_finite_difference(kernel, debiased, function):
    x = jax.random.normal(jax.random.key(0), (3, 7, 4), jnp.float64) * 2 + 1

    @jax.jit
    def loss(x):
        return function(tuple(x), kernel=kernel, debiased=debiased)

    step = 1e-6 * jax.random.normal(jax.random.key(1), x.shape, jnp.float64)
    difference = (loss(x + step) - loss(x - step)) / 2
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(x), step), difference, rtol=1e-5)


@pytest.mark.usefixtures("enable_x64")
def test_forward_mode_and_second_derivatives():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3), jnp.float64)
    t = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)

    def loss(x):
        return cka_penalty(tuple(x))

    grad = jax.jit(jax.grad(loss))
    directional, product = jax.jit(
        lambda x, t: (jax.jvp(loss, (x,), (t,))[1], jax.jvp(jax.grad(loss), (x,), (t,))[1])
    )(x, t)
    np.testing.assert_allclose(directional, np.vdot(grad(x), t), rtol=1e-10)
    difference = (grad(x + 1e-6 * t) - grad(x - 1e-6 * t)) / 2e-6
    np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-7)


def test_nan_features_are_not_hidden():
    x, y, _ = random_features(0)
    assert jnp.isnan(cka(x.at[3, 0, 0].set(jnp.nan), y))
    assert jnp.isnan(cka(x.at[3, 0, 0].set(jnp.inf), y))


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_cka_ignores_scale_shift_and_rotation(seed, scale, shift):
    x, y, _ = random_features(seed)
    x = x.reshape(16, -1)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(seed + 1), (12, 12)))[0]
    expected = jit_cka(x, y)
    np.testing.assert_allclose(jit_cka(scale * x @ rotation, y), expected, atol=2e-4)
    np.testing.assert_allclose(jit_cka(scale * (x + shift), y), expected, atol=2e-3)
    np.testing.assert_allclose(jit_cka(y, x), expected, atol=1e-6)
    assert -1.0001 <= expected <= 1.0001


@given(st.integers(0, 10_000))
def test_cka_of_a_feature_with_itself_is_one(seed):
    x = random_features(seed)[0]
    np.testing.assert_allclose(jit_cka(x, x), 1, atol=1e-5)
    np.testing.assert_allclose(jit_cka(x, x, debiased=False), 1, atol=1e-5)


def test_debiased_is_near_zero_on_independent_features_and_biased_near_one():
    x = jax.random.normal(jax.random.key(0), (200, 8, 1024))
    y = jax.random.normal(jax.random.key(1), (200, 8, 1024))
    assert abs(jax.vmap(jit_cka)(x, y).mean()) < 0.05
    assert jax.vmap(lambda a, b: jit_cka(a, b, debiased=False))(x, y).mean() > 0.95


def one_live_sample(x):
    return jnp.zeros_like(x).at[2].set(x[2])


NUMERICS = {
    "mean 1000": lambda x: x + 1000,
    "scale 1e-8": lambda x: x * 1e-8,
    "scale 1e8": lambda x: x * 1e8,
    "scale 1e-25": lambda x: x * 1e-25,
    "scale 1e25": lambda x: x * 1e25,
    "constant": lambda x: jnp.full_like(x, 1000.1),
    "zero": jnp.zeros_like,
    "one live sample": one_live_sample,
    "equal samples": lambda x: jnp.broadcast_to(x[:1], x.shape) + 0,
    "bfloat16": lambda x: x.astype(jnp.bfloat16),
    "float16": lambda x: x.astype(jnp.float16),
}
DEAD = ("constant", "zero", "one live sample", "equal samples")


@pytest.mark.parametrize("name", NUMERICS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_numerics(name, kernel, debiased):
    x, other = (jax.random.normal(jax.random.key(i), (8, 40)) for i in range(2))
    x = NUMERICS[name](x)

    def loss(x, other):
        return cka_penalty((x, other, x * 1), kernel=kernel, debiased=debiased)

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, other)
    assert jnp.isfinite(value)
    assert value.dtype == jnp.float32
    assert all(jnp.isfinite(g).all() for g in grads)
    assert grads[0].dtype == x.dtype
    self_cka = jit_cka(x, x, kernel=kernel, debiased=debiased)
    # One live sample varies: only what is left after U-centering a linear Gram is nothing.
    dead = name in DEAD and not (name == "one live sample" and (kernel == "rbf" or not debiased))
    if dead:
        assert value == 0
        assert all((g == 0).all() for g in grads)
        assert self_cka == 0
    elif name in ("scale 1e-25", "scale 1e25"):
        assert self_cka == 0
    elif name != "one live sample":
        np.testing.assert_allclose(self_cka, 1, atol=1e-4)


def test_negative_cross_terms_are_kept():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8))
    values = np.array(cka_matrix(tuple(x)))
    assert values.min() < 0
    np.testing.assert_allclose(cka_penalty(tuple(x)), values.sum() - np.trace(values), atol=1e-6)


def test_pairs_and_reduction():
    features = stages(sizes=(2, 1, 3))
    matrix = np.array(cka_matrix(features))
    ordered = [(0, 1), (3, 4), (3, 5), (4, 5)]
    within = sum(matrix[pair] for pair in ordered)
    every = (matrix.sum() - np.trace(matrix)) / 2
    np.testing.assert_allclose(cka_penalty(features), 2 * within, atol=1e-5)
    np.testing.assert_allclose(cka_penalty(features, pairs=ordered), 2 * within, atol=1e-5)
    np.testing.assert_allclose(cka_penalty(features, reduction="mean"), within / 4, atol=1e-6)
    np.testing.assert_allclose(cka_penalty(features, pairs="all"), 2 * every, atol=1e-5)
    np.testing.assert_allclose(
        cka_penalty(features, pairs="all", reduction="mean"), every / 15, atol=1e-6
    )
    np.testing.assert_allclose(cka_penalty(features, pairs=[(5, 0)]), 2 * matrix[0, 5], atol=1e-6)
    # Without a mapping all features are one group.
    np.testing.assert_allclose(cka_penalty(jax.tree.leaves(features)), 2 * every, atol=1e-5)


def test_samples_are_the_first_ones_and_batches_average_hsic():
    x, y, _ = random_features(1, n=20)
    np.testing.assert_allclose(cka_matrix((x, y), samples=8), cka_matrix((x[:8], y[:8])), atol=1e-6)
    parts = [hsic_matrix((x[i : i + 6], y[i : i + 6])) for i in (0, 6, 12)]
    expected = cka_from_hsic(sum(parts) / 3)
    np.testing.assert_allclose(cka_matrix((x, y), samples=6, batches=3), expected, atol=1e-5)
    np.testing.assert_allclose(cka_matrix((x, y), batches=3), expected, atol=1e-5)


@pytest.mark.parametrize("mapped", ["vmap", "pmap"])
def test_axis_name_averages_hsic_over_devices(mapped):
    x, y, _ = random_features(2, n=32)
    # Features of very different scale on each device: the average is of unscaled HSICs.
    x = x * jnp.repeat(jnp.array([1.0, 5.0, 0.2, 3.0]), 8)[:, None, None]
    shards = jax.tree.map(lambda a: a.reshape(4, 8, *a.shape[1:]), (x, y))
    over = jax.pmap if mapped == "pmap" else lambda f, **axis: jax.jit(jax.vmap(f, **axis))
    values, grads = over(
        lambda f: jax.value_and_grad(lambda g: cka_penalty(g, axis_name="d"))(f), axis_name="d"
    )(shards)
    whole = jax.jit(jax.value_and_grad(lambda f: cka_penalty(f, batches=4)))
    expected, expected_grads = whole((x, y))
    np.testing.assert_allclose(values, np.full(4, expected), atol=1e-5)
    # Each device holds 1/4 of the mean, and a training step averages the gradients over devices.
    for g, e in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(g.reshape(e.shape) / 4, e, atol=1e-5)


def test_works_under_jit_vmap_and_grad_with_bfloat16():
    x = jax.random.normal(jax.random.key(0), (5, 2, 8, 16), jnp.bfloat16)
    grads = jax.jit(jax.vmap(jax.grad(lambda f: cka_penalty((f[0], f[1])))))(x)
    assert grads.shape == x.shape
    assert grads.dtype == jnp.bfloat16
    assert jnp.isfinite(grads).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(jnp.ones((3, 2)), jnp.ones((3, 2))), "3 samples are too few for debiased"),
        (lambda: cka(jnp.ones((1, 2)), jnp.ones((1, 2)), debiased=False), "1 samples are too few"),
        (lambda: cka(jnp.ones((8, 2)), jnp.ones((9, 2))), "do not share a leading sample axis"),
        (lambda: cka(jnp.ones(()), jnp.ones(())), "do not share a leading sample axis"),
        (lambda: cka_matrix(()), "no features"),
        (lambda: cka_penalty(stages(), samples=9), "samples=9 in batches=1 needs 9"),
        (lambda: cka_penalty(stages(), samples=3), "3 samples are too few"),
        (lambda: cka_penalty(stages(), samples=4, batches=3), "needs 12 samples"),
        (lambda: cka_penalty(stages(), batches=0), "batches=0"),
        (lambda: cka_penalty(stages(sizes=(1, 1))), "no pair of features"),
        (lambda: cka_penalty({}), "no pair of features"),
        (lambda: cka_penalty(stages(), pairs="stage"), "pairs='stage' is unknown"),
        (lambda: cka_penalty(stages(), pairs=[(0, 9)]), r"pair \(0, 9\)"),
        (lambda: cka_penalty(stages(), pairs=[(1, 1)]), r"pair \(1, 1\)"),
        (lambda: cka_penalty(stages(), pairs=[]), "no pair of features"),
        (lambda: cka_penalty(stages(), reduction="max"), "reduction='max' is unknown"),
        (lambda: cka_penalty(stages(), kernel="poly"), "kernel='poly' is unknown"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
