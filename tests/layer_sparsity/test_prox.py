"""Proximal maps against a numerical minimizer, and their Optax transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from cka_sr_jax.layer_sparsity import (
    Affine,
    active_layers,
    branch_prox,
    candidate_layers,
    from_mlp,
    l1_prox,
    layer_prox,
    negative_norm,
    shrink_group,
    shrink_negative_part,
    shrink_units,
    shrink_weights,
    unit_prox,
)
from cka_sr_jax.models import MLP
from cka_sr_jax.similarity import cka_penalty, stage_features
from cka_sr_jax.sparsity import apply_masks, get_masks, rigl, rst, sparsify
from tests.layer_sparsity.chains import random_jax_chain


def negative_part_norm(v):
    return np.sqrt(np.sum(np.minimum(v, 0) ** 2))


def l1_norm(v):
    return np.sum(np.abs(v))


def units_norm(v):
    return np.sum(np.sqrt(np.sum(v**2, axis=0)))


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize(
    ("prox", "norm"),
    [
        (shrink_negative_part, negative_part_norm),
        (shrink_weights, l1_norm),
        (shrink_units, units_norm),
        (shrink_group, np.linalg.norm),
    ],
)
def test_prox_minimizes_its_objective(prox, norm):
    """Against Powell's search over all entries, from two starts: it takes no gradient at a kink."""
    rng = np.random.default_rng(0)
    step = jax.jit(prox)
    for t in (0.05, 0.3, 1.0, 2.0):
        for _ in range(3):
            w = rng.normal(size=(3, 2))

            def objective(v, w=w, t=t):
                v = v.reshape(w.shape)
                return 0.5 * np.sum((v - w) ** 2) + t * norm(v)

            options = {"xtol": 1e-10, "ftol": 1e-15, "maxfev": 100_000}
            found = min(
                (
                    minimize(objective, start.ravel(), method="Powell", options=options)
                    for start in (w, np.zeros_like(w))
                ),
                key=lambda found: found.fun,
            )
            result = np.asarray(step(w, t))
            assert objective(result) <= found.fun + 1e-12
            np.testing.assert_allclose(result, found.x.reshape(w.shape), atol=1e-6)


arrays = hnp.arrays(np.float32, (2, 3), elements=st.floats(-5, 5, width=32))


@given(arrays, arrays, st.floats(0, 5, width=32))
def test_prox_satisfies_the_subgradient_condition(w, other, t):
    v = np.asarray(shrink_negative_part(w, t), np.float64)
    assert np.array_equal(v[w >= 0], w[w >= 0])
    norm = np.linalg.norm(np.minimum(w.astype(np.float64), 0))
    if norm <= t * (1 - 1e-5):
        assert not np.any(v < 0)
    elif norm > t * (1 + 1e-5):  # w - v = t * neg(v) / ||neg(v)||
        np.testing.assert_allclose(v, w * np.where(w < 0, 1 - t / norm, 1), atol=1e-4)

    def objective(a):
        return 0.5 * np.sum((a - w) ** 2.0) + t * np.linalg.norm(np.minimum(a, 0))

    assert objective(v) <= objective(other.astype(np.float64)) + 1e-5


def test_prox_takes_a_layer_as_one_group():
    layer = Affine(jnp.array([[-3.0, 1.0]]), jnp.array([-4.0, 2.0]))
    shrunk = shrink_negative_part(layer, 2.5)
    np.testing.assert_allclose(shrunk.kernel, [[-1.5, 1.0]])
    np.testing.assert_allclose(shrunk.bias, [-2.0, 2.0])
    gone = shrink_negative_part(layer, 5.0)
    assert not np.signbit(gone.kernel).any()
    assert negative_norm(gone) == 0


NET = MLP(num_classes=3, hidden=(8, 8, 8))


X = jax.random.normal(jax.random.key(1), (12, 6))
Y = jnp.arange(12) % 3


@functools.cache
def init_params():
    return NET.init(jax.random.key(0), X, train=False)["params"]


def loss(params):
    logits, state = NET.apply({"params": params}, X, train=False, mutable=["features"])
    features = stage_features(state["features"])
    value = optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()
    return value + 1e-2 * cka_penalty(features)


def trained(tx, steps):
    params = init_params()
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(steps):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def test_one_step_is_the_prox_of_the_plain_step():
    params = init_params()
    grads = jax.tree.map(lambda p: jnp.sin(100 * p), params)
    tx = optax.chain(optax.sgd(0.5), layer_prox(0.8, 0.5, "hidden[12]"))
    updates, _ = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    for name, layer in params.items():
        expected = jax.tree.map(lambda p, g: p - 0.5 * g, layer, grads[name])
        if name in ("hidden1", "hidden2"):
            expected = shrink_negative_part(expected, 0.4)
        for key in layer:
            np.testing.assert_allclose(new[name][key], expected[key], atol=1e-6)


def test_a_schedule_sets_the_step_size():
    params = init_params()
    tx = layer_prox(1.0, optax.piecewise_constant_schedule(1e-9, {1: 1e12}), ["hidden1"])
    state = tx.init(params)
    norms = []
    for _ in range(2):
        zeros = jax.tree.map(jnp.zeros_like, params)
        with jax.numpy_dtype_promotion("standard"):  # Optax's schedule multiplies floats by steps
            updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
        norms.append(float(negative_norm(params["hidden1"])))
    assert norms[0] == pytest.approx(float(negative_norm(init_params()["hidden1"])), rel=1e-5)
    assert norms[1] == 0
    assert negative_norm(params["hidden2"]) > 0


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_layers_become_inactive_with_sparsify_and_cka_in_the_loss(momentum):
    tx = optax.chain(optax.sgd(0.1, momentum), layer_prox(0.5, 0.1, "hidden[1-9]*"))
    tx = sparsify(tx, rst(0.6))
    params, opt_state = trained(tx, 150)
    chain = from_mlp(params)
    assert active_layers(chain) == (0,)
    masks = get_masks(opt_state)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), apply_masks(params, masks), params)
    )
    assert np.mean(np.asarray(params["hidden1"]["kernel"]) != 0) <= 0.6
    assert np.isfinite(loss(params))


def test_a_chain_is_trained_by_the_indices_of_its_layers():
    chain = random_jax_chain(4)
    tx = layer_prox(1.0, 100.0, [str(j) for j in candidate_layers(chain)])
    updates = jax.tree.map(jnp.zeros_like, chain)
    updates, _ = tx.update(updates, tx.init(chain), chain)
    assert active_layers(optax.apply_updates(chain, updates)) == (0,)


def test_one_step_of_both_refit_penalties_is_the_prox_of_their_sum():
    params = init_params()
    grads = jax.tree.map(lambda p: jnp.sin(100 * p), params)
    tx = optax.chain(
        optax.sgd(0.5), l1_prox(0.1, 0.5, ["hidden*", "head"]), unit_prox(1.2, 0.5, "hidden*")
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    zeros = 0
    for name, layer in params.items():
        expected = jax.tree.map(lambda p, g: p - 0.5 * g, layer, grads[name])
        np.testing.assert_array_equal(new[name]["bias"], expected["bias"])
        w = np.asarray(expected["kernel"])
        w = np.sign(w) * np.maximum(np.abs(w) - 0.05, 0)
        if name != "head":
            norms = np.linalg.norm(w, axis=0, keepdims=True)
            w = w * np.maximum(0, 1 - 0.6 / norms)
            zeros += np.sum(~w.any(0))
        np.testing.assert_allclose(new[name]["kernel"], w, atol=1e-6)
        np.testing.assert_array_equal(new[name]["kernel"] == 0, w == 0)
    assert zeros > 0


def test_layer_prox_refuses_bad_arguments_with_a_sentence():
    params = init_params()
    for number in (-1.0, float("nan"), np.ones(2)):
        for transform in (layer_prox, l1_prox, unit_prox, branch_prox):
            with pytest.raises(ValueError, match=r"strength=.* is not a number >= 0"):
                transform(number, 0.1, "hidden1")
        with pytest.raises(ValueError, match=r"learning_rate=.* is not a number >= 0"):
            layer_prox(1.0, number, "hidden1")
        for prox in (shrink_negative_part, shrink_weights, shrink_units, shrink_group):
            with pytest.raises(ValueError, match="is not one number >= 0"):
                prox(np.ones((2, 3)), number)
    with pytest.raises(ValueError, match="layers is empty: name some, such as 'hidden1'"):
        layer_prox(1.0, 0.1, layers=[])
    with pytest.raises(ValueError, match="'hiden' matches no layer: the parameters have head, hid"):
        layer_prox(1.0, 0.1, ["hidden1", "hiden"]).init(params)
    with pytest.raises(ValueError, match="branches is empty: name some, such as 'hidden1' or 'st"):
        branch_prox(1.0, 0.1, [])
    with pytest.raises(ValueError, match="branches pattern 'bn2' matches no module: the parameter"):
        branch_prox(1.0, 0.1, "bn2").init(params)
    tx = layer_prox(1.0, 0.1, "hidden1")
    with pytest.raises(ValueError, match="a proximal step needs the parameters"):
        tx.update(params, tx.init(params))


def test_prox_with_a_rule_that_changes_its_masks():
    """Changing masks make Optax look for the parameter-shaped slots of every transform's state."""
    names = ["hidden0", "hidden1", "head"]
    keys = jax.random.split(jax.random.key(0), len(names))
    kernels = [jax.random.normal(key, (4, 4)) for key in keys]
    params = {name: {"kernel": kernel} for name, kernel in zip(names, kernels, strict=True)}
    inner = optax.chain(optax.sgd(0.1, 0.9), layer_prox(10.0, 0.1, "hidden1"))
    tx = sparsify(inner, rigl(0.5, end_step=10, update_every=2))
    state = tx.init(params)
    start = get_masks(state)
    update = jax.jit(tx.update)
    for step in range(6):
        grads = jax.tree.map(lambda w, s=step: jnp.cos(w + s), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start, get_masks(state))
    assert any(jax.tree.leaves(changed))
    for name in names:
        kernel, mask = params[name]["kernel"], get_masks(state)[name]["kernel"]
        assert not kernel[~mask].any()
    assert (params["hidden1"]["kernel"] >= 0).all()
    assert (params["hidden0"]["kernel"] < 0).any()


def test_branches_of_a_residual_network_end_at_exactly_0():
    """One step of each branch is the group's prox, and what no pattern names stays."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    blocks = {
        f"block{i}": {
            "conv": {"kernel": random(2, 2)},
            "bn2": {"scale": random(2), "bias": random(2)},
        }
        for i in range(3)
    }
    size = {name: np.sqrt(sum(np.sum(np.square(a)) for a in block["bn2"].values()))
            for name, block in blocks.items()}  # fmt: skip
    between = float(np.mean(sorted(size.values())[:2]))
    tx = branch_prox(between, 1.0, "block*/bn2")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, blocks), tx.init(blocks), blocks)
    new = optax.apply_updates(blocks, updates)
    for name, block in blocks.items():
        np.testing.assert_array_equal(new[name]["conv"]["kernel"], block["conv"]["kernel"])
        factor = max(0.0, 1 - between / size[name])
        for key, old in block["bn2"].items():
            np.testing.assert_allclose(new[name]["bn2"][key], old * factor, rtol=1e-5)
        assert (factor == 0) == (not np.any(new[name]["bn2"]["scale"]))
    assert sum(not np.any(block["bn2"]["scale"]) for block in new.values()) == 1
