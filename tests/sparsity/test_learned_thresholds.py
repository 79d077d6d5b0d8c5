"""STR and DST against naive loops and values computed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    density,
    dst,
    get_masks,
    leaf_paths,
    learn_masks,
    soft_threshold,
    sr_ste,
)
from cka_sr_jax.sparsity.learned_thresholds import step_slope, unit_step


def layers():
    """A convolution, a dense layer and a classifier."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 5), "mid": (8, 6), "head": (8, 4)}
    return {
        name: {
            "kernel": rng.normal(0, 0.5, shape).astype(np.float32),
            "bias": rng.normal(size=shape[-1]).astype(np.float32),
        }
        for name, shape in shapes.items()
    }


def with_thresholds(trained, values):
    """The trained tree with other thresholds in the layers named."""
    thresholds = dict(trained["thresholds"])
    for name, value in values.items():
        old = thresholds[name]["kernel"]
        new = np.broadcast_to(np.asarray(value, old.dtype), old.shape)
        thresholds[name] = thresholds[name] | {"kernel": new}
    return trained | {"thresholds": thresholds}


def threshold(trained, name):
    return np.asarray(trained["thresholds"][name]["kernel"])


METHODS = {
    "str": functools.partial(soft_threshold, initial=-2.0),
    "dst": functools.partial(dst, 1e-2),
    "sr_ste": functools.partial(sr_ste, decay=1e-2),
}


@pytest.mark.parametrize("method", METHODS)
def test_weights_masks_and_the_trained_tree_belong_together(method):
    method = METHODS[method](exclude=["head/kernel"])
    params = layers()
    trained = method.init(params)
    assert trained["weights"] is params
    if "thresholds" in trained:
        assert [path for path, _ in leaf_paths(trained["thresholds"])] == [
            "conv/kernel",
            "mid/kernel",
        ]
        trained = with_thresholds(
            trained,
            {"conv": -1.0, "mid": -0.5} if threshold(trained, "mid").shape == () else {"mid": 0.4},
        )
    masks, weights = jax.jit(method.masks)(trained), jax.jit(method.weights)(trained)
    assert [path for path, _ in leaf_paths(masks)] == ["weights/conv/kernel", "weights/mid/kernel"]
    assert isinstance(masks["weights"]["head"]["kernel"], optax.MaskedNode)
    jax.tree.map(  # the masks have the trained tree's structure
        lambda mask, leaf: None,
        masks,
        trained,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    assert jax.tree.structure(weights) == jax.tree.structure(params)
    for path, mask in leaf_paths(masks["weights"]):
        mask, weight = np.asarray(mask), np.asarray(dict(leaf_paths(weights))[path])
        assert mask.dtype == bool
        np.testing.assert_array_equal(weight != 0, mask, err_msg=path)
    assert 0 < density(masks) < 1
    for name in params:
        np.testing.assert_array_equal(weights[name]["bias"], params[name]["bias"])
    np.testing.assert_array_equal(weights["head"]["kernel"], params["head"]["kernel"])


def random_like(params):
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), params)


def pulled_back(method, trained, upstream):
    """The sparse weights, and the gradient of the trained tree for this one of theirs."""

    @jax.jit
    def both(trained):
        weights, pullback = jax.vjp(method.weights, trained)
        return weights, pullback(upstream)[0]

    return both(trained)


def test_str_is_the_soft_threshold_of_a_naive_loop():
    method = soft_threshold(initial=-1.2)
    params = layers()
    trained = with_thresholds(method.init(params), {"mid": 0.3})
    upstream = random_like(params)
    weights, grads = pulled_back(method, trained, upstream)
    for name in params:
        s = 0.3 if name == "mid" else -1.2
        g = 1 / (1 + np.exp(-s))
        w = np.asarray(params[name]["kernel"], np.float64)
        expected, slope, to_s = np.zeros_like(w), np.zeros_like(w), 0.0
        for i in np.ndindex(w.shape):
            if abs(w[i]) > g:
                expected[i] = np.sign(w[i]) * (abs(w[i]) - g)
                slope[i] = upstream[name]["kernel"][i]
                to_s -= slope[i] * np.sign(w[i]) * g * (1 - g)
        assert 0 < (expected != 0).mean() < 1
        np.testing.assert_allclose(weights[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grads["weights"][name]["kernel"], slope, rtol=1e-5)
        np.testing.assert_allclose(grads["thresholds"][name]["kernel"], to_s, rtol=1e-4, atol=1e-5)


def test_a_start_far_below_is_dense_and_finite():
    method = soft_threshold(initial=-3200.0)
    trained = method.init(layers())
    assert density(method.masks(trained)) == 1
    weights, grads = pulled_back(method, trained, trained["weights"])
    jax.tree.map(np.testing.assert_array_equal, weights, trained["weights"])
    assert [threshold(grads, name) for name in grads["thresholds"]] == [0, 0, 0]


def test_dst_step_and_its_published_slope():
    x = jnp.array([-2.0, -1.0, -0.7, -0.4, -0.1, 0.0, 0.1, 0.25, 0.4, 0.7, 1.0, 1.01])
    np.testing.assert_array_equal(unit_step(x), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    expected = np.array([0, 0.4, 0.4, 0.4, 1.6, 2, 1.6, 1, 0.4, 0.4, 0.4, 0])
    np.testing.assert_allclose(step_slope(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: unit_step(x).sum())(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(unit_step, (x,), (3 * x,))[1], 3 * expected * x, rtol=1e-6)


def test_dst_gradients_of_one_unit_by_hand():
    """w = .5 is kept at distance .3, -.1 pruned at -.1, 1.5 kept beyond the slope's reach."""
    method = dst(0.0)
    trained = {
        "weights": {"w": jnp.array([[0.5], [-0.1], [1.5]])},
        "thresholds": {"w": jnp.array([0.2])},
    }
    np.testing.assert_array_equal(method.weights(trained)["w"], [[0.5], [0], [1.5]])
    upstream = jnp.array([[1.0], [10.0], [100.0]])
    grads = jax.grad(lambda trained: jnp.sum(method.weights(trained)["w"] * upstream))(trained)
    # upstream * (step + |w| * slope), slopes .8, 1.6 and 0.
    np.testing.assert_allclose(
        grads["weights"]["w"], [[1 + 0.5 * 0.8], [10 * 0.1 * 1.6], [100]], rtol=1e-5
    )
    # -upstream * w * slope, summed over the unit's weights.
    np.testing.assert_allclose(grads["thresholds"]["w"], [-(0.4 - 1.6)], rtol=1e-5)


def test_dst_is_a_naive_loop_with_one_threshold_per_output_unit():
    alpha = 0.3
    method = dst(alpha)
    params = layers()
    rng = np.random.default_rng(3)
    limits = {
        name: rng.uniform(0, 0.8, layer["bias"].shape).astype(np.float32)
        for name, layer in params.items()
    }
    trained = with_thresholds(method.init(params), limits)
    upstream = random_like(params)
    weights, grads = pulled_back(method, trained, upstream)
    grads, masks = jax.jit(method.regularize)(grads, trained), jax.jit(method.masks)(trained)
    for name in params:
        w = np.asarray(params[name]["kernel"])
        kept, to_w, to_t = np.zeros(w.shape, bool), np.zeros_like(w), np.zeros_like(limits[name])
        for i in np.ndindex(w.shape):
            x = abs(w[i]) - limits[name][i[-1]]
            slope = 2 - 4 * abs(x) if abs(x) <= 0.4 else 0.4 if abs(x) <= 1 else 0
            kept[i] = x >= 0
            from_above = upstream[name]["kernel"][i]
            to_w[i] = from_above * (kept[i] + abs(w[i]) * slope)
            to_t[i[-1]] -= from_above * w[i] * slope
        to_t -= alpha * np.exp(-limits[name])
        np.testing.assert_array_equal(weights[name]["kernel"], w * kept)
        np.testing.assert_array_equal(masks["weights"][name]["kernel"], kept)
        np.testing.assert_allclose(grads["weights"][name]["kernel"], to_w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(grads["thresholds"][name]["kernel"], to_t, rtol=1e-4, atol=1e-5)


def test_dst_starts_dense_even_where_a_weight_is_0():
    method = dst(1e-3)
    trained = method.init({"w": jnp.zeros((3, 2))})
    assert density(method.masks(trained)) == 1


@pytest.mark.parametrize("compiled", [jax.jit, lambda f: f])
def test_a_layer_of_1_percent_has_its_thresholds_reset_to_exactly_0(compiled):
    """Of 200 weights 2 are kept after the step, which is 1 %; the other layer keeps 3."""
    weights = {"a": jnp.linspace(0.005, 1, 200).reshape(50, 4)}
    weights["b"] = weights["a"]
    trained = {"weights": weights, "thresholds": {"a": jnp.full(4, 0.9931), "b": jnp.full(4, 0.7)}}
    tx = learn_masks(optax.sgd(1.0), dst(0.0))
    grads = jax.tree.map(jnp.zeros_like, trained)
    grads["thresholds"]["b"] = jnp.full(4, -0.288)
    update = compiled(tx.update)
    state = tx.init(trained)
    assert state.masks["weights"]["a"].sum() == 2
    updates, state = update(grads, state, trained)
    new = optax.apply_updates(trained, updates)
    np.testing.assert_array_equal(new["thresholds"]["a"], np.zeros(4))
    np.testing.assert_allclose(new["thresholds"]["b"], 0.988, rtol=1e-6)
    masks = get_masks(state)["weights"]
    assert masks["a"].all()
    assert masks["b"].sum() == 3
    jax.tree.map(np.testing.assert_array_equal, new["weights"], weights)
