"""The penalty against its formula, the proximal step against a numerical minimizer, and Optax."""

import functools
import itertools

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
    apply_chain,
    candidate_layers,
    drop_dead_units,
    from_mlp,
    l1_penalty,
    l1_prox,
    layer_penalty,
    layer_prox,
    negative_norm,
    prox_l1,
    prox_negative_part,
    prox_units,
    random_like,
    row_group_penalty,
    unit_prox,
)
from cka_sr_jax.models import MLP
from cka_sr_jax.similarity import cka_penalty, stage_features
from cka_sr_jax.sparsity import apply_masks, get_masks, rigl, rst, sparsify


def naive_norm(*arrays):
    return sum(min(float(v), 0.0) ** 2 for a in arrays for v in np.ravel(a)) ** 0.5


def random_chain(seed, sizes=(4, 5, 6, 3, 2)):
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(sizes)
    return tuple(
        Affine(
            jnp.asarray(rng.normal(size=s), jnp.float32),
            jnp.asarray(rng.normal(size=s[1]), jnp.float32),
        )
        for s in shapes
    )


# The penalty.


def test_negative_norm_is_the_norm_of_the_negative_part():
    (kernel, bias), *_ = random_chain(0)
    assert negative_norm(kernel) == pytest.approx(naive_norm(kernel), rel=1e-6)
    assert negative_norm(Affine(kernel, bias)) == pytest.approx(naive_norm(kernel, bias), rel=1e-6)


def test_negative_norm_has_its_gradient_and_0_where_there_is_none():
    kernel = random_chain(0)[0].kernel
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
    chain = random_chain(1)
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
    chain = random_chain(2)
    same = rescaled(chain, [3.0, 0.01, 50.0])
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(apply_chain(same, x), apply_chain(chain, x), rtol=1e-4)
    value = float(invariant_penalty(chain))
    assert invariant_penalty(same) == pytest.approx(value, rel=1e-5)
    assert abs(layer_penalty(same) / layer_penalty(chain) - 1) > 0.5  # the loophole


def test_the_scale_invariant_form_agrees_with_its_formula():
    chain = random_chain(3)
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


# The proximal step.


def negative_part_norm(v):
    return np.sqrt(np.sum(np.minimum(v, 0) ** 2))


def l1_norm(v):
    return np.sum(np.abs(v))


def units_norm(v):
    return np.sum(np.sqrt(np.sum(v**2, axis=0)))


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize(
    ("prox", "norm"),
    [(prox_negative_part, negative_part_norm), (prox_l1, l1_norm), (prox_units, units_norm)],
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
    v = np.asarray(prox_negative_part(w, t), np.float64)
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
    shrunk = prox_negative_part(layer, 2.5)
    np.testing.assert_allclose(shrunk.kernel, [[-1.5, 1.0]])
    np.testing.assert_allclose(shrunk.bias, [-2.0, 2.0])
    gone = prox_negative_part(layer, 5.0)
    assert not np.signbit(gone.kernel).any()
    assert negative_norm(gone) == 0


# The Optax transform.

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
            expected = prox_negative_part(expected, 0.4)
        for key in layer:
            np.testing.assert_allclose(new[name][key], expected[key], atol=1e-6)


def test_a_schedule_sets_the_step_size():
    params = init_params()
    tx = layer_prox(1.0, optax.piecewise_constant_schedule(1e-9, {1: 1e12}), ["hidden1"])
    state = tx.init(params)
    norms = []
    for _ in range(2):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        norms.append(float(negative_norm(params["hidden1"])))
    assert norms[0] == pytest.approx(float(negative_norm(init_params()["hidden1"])), rel=1e-5)
    assert norms[1] == 0
    assert negative_norm(params["hidden2"]) > 0


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_layers_become_inactive_with_sparsify_and_cka_in_the_loss(momentum):
    tx = optax.chain(optax.sgd(0.1, momentum), layer_prox(0.5, 0.1, "hidden[1-9]*"))
    tx = sparsify(tx, rst(0.4))
    params, opt_state = trained(tx, 150)
    chain = from_mlp(params)
    assert active_layers(chain) == (0,)
    masks = get_masks(opt_state)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), apply_masks(params, masks), params)
    )
    assert np.mean(np.asarray(params["hidden1"]["kernel"]) != 0) <= 0.4
    assert np.isfinite(loss(params))


def test_a_chain_is_trained_by_the_indices_of_its_layers():
    chain = random_chain(4)
    tx = layer_prox(1.0, 100.0, [str(j) for j in candidate_layers(chain)])
    updates = jax.tree.map(jnp.zeros_like, chain)
    updates, _ = tx.update(updates, tx.init(chain), chain)
    assert active_layers(optax.apply_updates(chain, updates)) == (0,)


def test_layer_prox_refuses_bad_arguments_with_a_sentence():
    params = init_params()
    for number in (-1.0, float("nan"), np.ones(2)):
        for transform in (layer_prox, l1_prox, unit_prox):
            with pytest.raises(ValueError, match=r"strength=.* is not a number >= 0"):
                transform(number, 0.1, "hidden1")
        with pytest.raises(ValueError, match=r"learning_rate=.* is not a number >= 0"):
            layer_prox(1.0, number, "hidden1")
        for prox in (prox_negative_part, prox_l1, prox_units):
            with pytest.raises(ValueError, match="is not one number >= 0"):
                prox(np.ones((2, 3)), number)
    with pytest.raises(ValueError, match="layers is empty: name the layers"):
        layer_prox(1.0, 0.1, layers=[])
    with pytest.raises(ValueError, match="'hiden' matches no layer: the parameters have head, hid"):
        layer_prox(1.0, 0.1, ["hidden1", "hiden"]).init(params)
    tx = layer_prox(1.0, 0.1, "hidden1")
    with pytest.raises(ValueError, match="a proximal step needs the parameters"):
        tx.update(params, tx.init(params))


# The refit.


def test_refit_penalties_agree_with_their_formulas():
    chain = random_chain(5)
    rows = sum(np.linalg.norm(u) for layer in chain[:-1] for u in np.asarray(layer.kernel).T)
    assert jax.jit(row_group_penalty)(chain) == pytest.approx(rows, rel=1e-6)
    total = sum(np.abs(layer.kernel).sum() for layer in chain)
    assert l1_penalty(chain) == pytest.approx(total, rel=1e-6)
    gradient = jax.jit(jax.grad(row_group_penalty))(jax.tree.map(jnp.zeros_like, chain))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


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
    chain = random_chain(6, (50, 200, 100))
    fresh = random_like(chain, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, chain)
    for kernel, bias in fresh:
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / len(kernel)), rel=0.05)
        assert not np.any(bias)


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
