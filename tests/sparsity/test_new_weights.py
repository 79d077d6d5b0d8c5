"""The first updates of weights that a rule has grown."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    Rule,
    adam_correction,
    make_rule,
    ramp,
    rst,
    sparsify,
)
from tests.sparsity.naive import COMMON, layers, train

GROWN_AT = 5  # the update after whose masks the second weight is new


def grows_once():
    """Keeps the first of two weights, and both from step 5 on."""

    def init(key, params):
        return {"w": jnp.array([[True], [False]])}

    def update(key, step, masks, params, grads):
        return {"w": jnp.ones((2, 1), bool)}

    return Rule(init=init, update=update, due=lambda step: step == GROWN_AT)


def adam(gradients, b1, b2, rate):
    """Weights after each update by Adam from 0, a plain loop."""
    m = v = w = 0.0
    found = []
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= rate * (m / (1 - b1**t)) / np.sqrt(v / (1 - b2**t))
        found.append(w)
    return found


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.95), (0.0, 0.9)])
def test_a_new_weight_is_trained_as_by_adam_from_its_start(b1, b2):
    gradients = np.random.default_rng(0).normal(size=30).astype(np.float32)
    tx = sparsify(
        optax.adam(0.1, b1, b2, eps=0.0), grows_once(), new_weights=adam_correction(b1, b2)
    )
    start = {"w": jnp.array([[0.0], [5.0]])}
    grads = lambda i, _: {"w": jnp.full((2, 1), gradients[i])}  # noqa: E731
    old = adam(gradients, b1, b2, 0.1)
    new = adam(gradients[GROWN_AT + 1 :], b1, b2, 0.1)
    for steps in (4, 7, 8, 20, 30):
        params, state = train(tx, start, steps, grads)
        expected = new[steps - GROWN_AT - 2] if steps > GROWN_AT + 1 else 0
        np.testing.assert_allclose(params["w"][:, 0], [old[steps - 1], expected], rtol=2e-4)
    assert state.age["w"][:, 0].tolist() == [30, 30 - GROWN_AT - 1]


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_the_cold_start_and_its_cures():
    """Under a constant gradient Adam's update is 3.2 learning rates at first and 6.6 at most."""
    grads = {"w": jnp.ones((2, 1))}
    steps = 3000

    def updates(new_weights):
        rule = grows_once()._replace(due=lambda step: step == steps)
        tx = sparsify(optax.adam(1.0, eps=0.0), rule, new_weights=new_weights)
        params = {"w": jnp.zeros((2, 1))}
        state = tx.init(params)
        # As after 3000 updates: Adam's slots are full where the mask is True.
        state = state._replace(step=jnp.int32(steps))
        adam_state = state.inner_state[0]._replace(count=jnp.int32(20_000))
        state = state._replace(inner_state=(adam_state, *state.inner_state[1:]))
        sizes = []
        for _ in range(60):
            change, state = tx.update(grads, state, params)
            sizes.append(-float(change["w"][1, 0]))
        return sizes[1:]  # the first update is the one that grows it

    plain = updates(None)
    assert plain[0] == pytest.approx(3.16, abs=0.01)
    assert max(plain) == pytest.approx(6.6, abs=0.1)
    np.testing.assert_allclose(updates(ramp(100))[:3], np.multiply(plain[:3], [0.01, 0.02, 0.03]))


def test_the_first_masks_need_no_correction():
    grads = lambda i, _: layers()  # noqa: E731
    plain, corrected = (
        train(
            sparsify(optax.sgd(0.1), make_rule("rigl", **COMMON), new_weights=way),
            layers(),
            2,
            grads,
        )
        for way in (None, ramp(100))
    )
    for name, layer in plain[0].items():
        np.testing.assert_array_equal(layer["kernel"], corrected[0][name]["kernel"])


def test_a_rule_that_never_changes_keeps_no_ages():
    tx = sparsify(optax.sgd(0.1), rst(0.5), new_weights=ramp(10))
    assert tx.init({"w": jnp.ones((4, 5))}).age == ()


@pytest.mark.parametrize(
    "make", [lambda: ramp(0), lambda: adam_correction(1.0), lambda: adam_correction(0.9, 0)]
)
def test_what_cannot_be_is_one_sentence(make):
    with pytest.raises(ValueError, match="such as"):
        make()


def test_a_state_without_ages_is_not_one_of_this_sparsify():
    rule = make_rule("rigl", **COMMON)
    state = sparsify(optax.sgd(0.1), rule).init(layers())
    with pytest.raises(ValueError, match="not one of this sparsify"):
        sparsify(optax.sgd(0.1), rule, new_weights=ramp(10)).update(layers(), state, layers())
