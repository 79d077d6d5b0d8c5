"""Tokens scored, sampled, masked and removed, against naive NumPy; a ViT that drops them."""

import doctest
import importlib
import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.models import ViT, create_model, vit
from cka_sr_jax.models.tokens import (
    attention_among_kept,
    cka_with_other_tokens,
    gather_tokens,
    keep_rate_loss,
    kept_count,
    sampled_keep,
    top_tokens,
)
from cka_sr_jax.models.vit import KeepScores
from cka_sr_jax.training import classification_loss
from tests.models.shapes import KEY, init_shapes

IMAGE = (8, 8, 3)
RATES = (0.7, 0.4)


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def naive_biased_cka(x, y):
    """Of [n, d1] and [n, d2], from centered Gram matrices."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


@pytest.mark.parametrize("with_kept", [False, True])
def test_cka_over_channels_equals_a_naive_loop(with_kept):
    tokens = random(0, 3, 5, 8)
    kept = jnp.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], jnp.float32)
    found = cka_with_other_tokens(tokens, kept if with_kept else None)
    for b, i in itertools.product(range(3), range(5)):
        others = [j for j in range(5) if j != i and (kept[b, j] or not with_kept)]
        expected = sum(
            naive_biased_cka(*(np.asarray(tokens[b, t], np.float64)[:, None] for t in (i, j)))
            for j in others
        )
        assert found[b, i] == pytest.approx(expected, abs=1e-5)


def test_a_constant_token_is_like_no_other():
    tokens = random(2, 1, 3, 4).at[0, 1].set(7.0)
    found = np.asarray(cka_with_other_tokens(tokens))
    assert found[0, 1] == 0
    assert found[0, 0] == found[0, 2] > 0


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@given(st.integers(0, 2**32 - 1), hnp.arrays(bool, (2, 5)))
def test_attention_among_kept_is_attention_without_the_others(seed, kept):
    query, key, value = (random(seed + i, 2, 5, 2, 3) for i in range(3))
    found = attention_among_kept(query, key, value, jnp.asarray(kept, jnp.float32))
    query, key, value = map(np.asarray, (query, key, value))
    for b, i, h in itertools.product(range(2), range(5), range(2)):
        there = [j for j in range(5) if kept[b, j] or j == i]
        weights = softmax(query[b, i, h] @ key[b, there, h].T / np.sqrt(3))
        np.testing.assert_allclose(found[b, i, h], weights @ value[b, there, h], atol=2e-5)


def naive_attention(query, key, value, kept):
    """By the formula of the docstring, differentiable in kept."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(3)
    itself = jnp.eye(scores.shape[-1])[None, None]
    gate = kept[:, None, None, :] * (1 - itself) + itself
    weights = jnp.exp(scores) * gate
    return jnp.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


def test_the_gradient_reaches_kept_and_dropped_tokens_as_the_formula_says():
    query, key, value, weights = (random(i, 2, 5, 2, 3) for i in range(4))
    kept = jnp.array([[1.0, 0, 1, 0, 1], [0, 0, 1, 1, 0]])

    def loss(attention):
        return lambda *arrays: jnp.sum(weights * attention(*arrays))

    found = jax.grad(loss(attention_among_kept), argnums=(0, 1, 2, 3))(query, key, value, kept)
    expected = jax.grad(loss(naive_attention), argnums=(0, 1, 2, 3))(query, key, value, kept)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_dropped_token_with_a_huge_score_does_no_harm():
    query, value = jnp.ones((1, 2, 1, 1)), random(0, 1, 2, 1, 1)
    key = jnp.array([[[[1.0]], [[1e4]]]])
    kept = jnp.array([[1.0, 0.0]])
    found, grad = jax.value_and_grad(
        lambda kept: attention_among_kept(query, key, value, kept)[0, 0, 0, 0]
    )(kept)
    assert found == pytest.approx(value[0, 0, 0, 0])
    # e^10, the cap, times the difference of the values.
    expected = np.exp(10) * (value[0, 1, 0, 0] - value[0, 0, 0, 0])
    np.testing.assert_allclose(grad[0, 1], expected, rtol=1e-3)


def test_sampled_decisions_have_their_probability_and_the_relaxations_gradient():
    probability = jnp.array([0.1, 0.5, 0.9])
    logs = jnp.log(jnp.stack([probability, 1 - probability], -1))
    keys = jax.random.split(KEY, 4000)
    drawn = jax.vmap(lambda key: sampled_keep(logs[None], key)[0])(keys)
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_allclose(drawn.mean(0), probability, atol=0.03)  # 4 standard errors

    def relaxed(logs):
        noise = jax.random.gumbel(KEY, logs.shape)
        return jax.nn.softmax(logs + noise)[..., 0].sum()

    found = jax.grad(lambda logs: sampled_keep(logs, KEY).sum())(logs[None])
    np.testing.assert_allclose(found, jax.grad(relaxed)(logs[None]), rtol=1e-5)


@given(hnp.arrays(np.float32, (2, 6), elements=st.floats(-5, 5, width=32)), st.integers(1, 6))
def test_the_top_tokens_are_those_of_a_stable_sort(scores, count):
    scores = scores + np.float32(0)  # -0.0 is less than 0.0 to JAX
    places = top_tokens(jnp.asarray(scores), count)
    for found, row in zip(np.asarray(places), scores, strict=True):
        assert list(found) == sorted(np.argsort(-row, kind="stable")[:count])
    tokens = random(0, 2, 6, 3)
    gathered = gather_tokens(tokens, places)
    for b, i in np.ndindex(2, count):
        np.testing.assert_array_equal(gathered[b, i], tokens[b, places[b, i]])


def test_counts_and_rates():
    assert [kept_count(rate, 196) for rate in (0.7, 0.49, 0.343, 0.001)] == [137, 96, 67, 1]
    assert kept_count(0.7, 10) == 7  # 0.7 * 10 is a bit less than 7
    assert keep_rate_loss(jnp.array([[1.0, 0, 0, 0], [1, 1, 0, 0]]), 0.5) == 0.25**2 / 2


@pytest.fixture
def small(monkeypatch):
    """Three blocks of width 8 with two heads, on 4 x 4 patches."""
    monkeypatch.setitem(vit.SIZES, "small32", (8, 3, 2))
    return create_model("vit-small32", 5, patch=2, keep_rates=RATES)


def with_random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = init_shapes(model, IMAGE)["params"]
    return {
        "params": jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32) / 2, shapes)
    }


@pytest.mark.parametrize("by", ["score", "score-cka"])
@pytest.mark.parametrize("rates", [(0.95,), (0.7,), (0.25,), (0.07,), (0.7, 0.4), (0.9, 0.1)])
def test_removed_is_masked(small, rates, by):
    """The patches that stay compute what they would with the dropped ones masked, to 1e-5."""
    model = small.clone(keep_rates=rates, keep_by=by)
    variables, images = with_random_weights(model), random(3, 4, *IMAGE)

    def run(model):
        logits, sown = model.apply(variables, images, False, mutable=["features"])
        return logits, sown["features"]["blocks"]

    logits, features = jax.jit(lambda: run(model))()
    masked, all_of_them = jax.jit(lambda: run(model.clone(remove=False)))()
    scale = float(jnp.max(jnp.abs(masked)))
    np.testing.assert_allclose(logits, masked, rtol=0, atol=1e-5 * scale)
    # Features are where they were in the image, and 0 where a patch is dropped.
    counts = set()
    for feature, other in zip(features, all_of_them, strict=True):
        np.testing.assert_allclose(feature, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))
        counts |= set(np.any(np.asarray(feature), axis=-1).sum(1).tolist())
    assert counts == {17, *(1 + int(rate * 16 + 1e-9) for rate in rates)}


def test_scores_equal_naive_numpy():
    x, kept = random(0, 2, 4, 8), jnp.array([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    scores = KeepScores()
    shapes = jax.eval_shape(lambda: scores.init(KEY, x, kept))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), shapes)

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def gelu(x):
        return np.asarray(jax.nn.gelu(x, approximate=False))

    x, kept = np.asarray(x), np.asarray(kept)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = gelu(dense("in", y * params["norm"]["scale"] + params["norm"]["bias"]))
    shared = [row[k == 1, 4:].mean(0) for row, k in zip(y, kept, strict=True)]
    y = np.concatenate([y[..., :4], np.repeat(np.stack(shared)[:, None], 4, 1)], -1)
    y = dense("out", gelu(dense("middle2", gelu(dense("middle1", y)))))
    expected = y - np.log(np.exp(y).sum(-1, keepdims=True))
    found = scores.apply({"params": params}, jnp.asarray(x), jnp.asarray(kept))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_image_may_lose_all_its_patches(small):
    images = random(5, 3, *IMAGE)
    params = with_random_weights(small)["params"]
    for stage in ("keep0", "keep1"):  # "drop" is nearly certain
        params[stage]["out"]["bias"] = np.array([-50, 50], np.float32)
    batch = {"image": images, "label": jnp.arange(3)}

    @jax.jit
    def value_and_grad(params):
        loss = classification_loss(small)
        return jax.value_and_grad(loss, has_aux=True)(params, {}, batch, jnp.int32(0), None)

    (value, _), grads = value_and_grad(params)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_without_keep_rates_nothing_changes(small):
    plain = small.clone(keep_rates=())
    variables = with_random_weights(small)
    kept = {k: v for k, v in variables["params"].items() if not k.startswith("keep")}
    assert set(init_shapes(plain, IMAGE)["params"]) == set(kept)
    assert {k for k in variables["params"] if k.startswith("keep")} == {"keep0", "keep1"}


def test_training_samples_and_pulls_the_rates(small):
    """All parts of the predictor learn, from the task and from the rate."""
    images, labels = random(4, 6, *IMAGE), jnp.arange(6) % 5
    params = with_random_weights(small)["params"]
    loss = classification_loss(small, seed=3)
    batch = {"image": jnp.asarray(images), "label": labels}

    @jax.jit
    def value_and_grad(params, step):
        return jax.value_and_grad(loss, has_aux=True)(params, {}, batch, step, None)

    (value, (metrics, _)), grads = value_and_grad(params, jnp.int32(0))
    assert metrics["model_loss"] > 0
    assert value == pytest.approx(float(metrics["task_loss"] + metrics["model_loss"]))
    for name in ("keep0", "keep1"):
        for path, grad in flax.traverse_util.flatten_dict(grads[name]).items():
            assert np.any(grad), (name, path)
    (same, _), _ = value_and_grad(params, jnp.int32(0))
    (other, _), _ = value_and_grad(params, jnp.int32(1))
    assert same == value != other
    # A model that drops nothing has no such loss.
    plain = small.clone(keep_rates=())
    kept = {k: v for k, v in params.items() if not k.startswith("keep")}
    _, (metrics, _) = jax.jit(
        lambda: classification_loss(plain)(kept, {}, batch, jnp.int32(0), None)
    )()
    assert "model_loss" not in metrics


def test_operations_fall_with_the_tokens(small):
    variables = init_shapes(small, IMAGE)
    positions = kernel_positions(small, variables, jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    assert [positions[f"block{i}/up/kernel"] for i in range(3)] == [17, 12, 7]
    assert positions["keep0/in/kernel"] == 16
    assert positions["keep1/in/kernel"] == 11


def test_what_cannot_be_dropped_is_refused(small):
    for rates in ((0.5, 0.5), (1.0,), (0.0,), (0.4, 0.7), (0.9, 0.8, 0.7), (float("nan"),)):
        with pytest.raises(
            ValueError, match=r"keep_rates=.*: expected falling shares between 0 an"
        ):
            small.clone(keep_rates=rates)
    for rates in (0.5, "0.5", ("0.5",)):
        with pytest.raises(ValueError, match=r"keep_rates=.*: expected numbers, such as"):
            small.clone(keep_rates=rates)
    for weight in (-1.0, float("nan"), "2"):
        with pytest.raises(ValueError, match=r"keep_loss=.*: expected a number of 0 or more"):
            small.clone(keep_loss=weight)
    with pytest.raises(ValueError, match="Unknown keep_by 'cka': expected one of score, score-cka"):
        ViT(10, keep_by="cka")
    with pytest.raises(ValueError, match=r"pass rngs=\{'gumbel'"):
        small.apply(with_random_weights(small), random(0, 2, *IMAGE), True)


def test_the_docstrings_examples_run():
    module = importlib.import_module("cka_sr_jax.models.tokens")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert doctest.testmod(module).failed == 0
