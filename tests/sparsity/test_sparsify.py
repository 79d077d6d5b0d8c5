"""What `sparsify` keeps in its state; tests/sparsity/test_contract.py has what it does."""

import jax.numpy as jnp
import optax
import pytest

from cka_sr_jax.sparsity import (
    churn,
    density,
    explored,
    make_rule,
    mask_metrics,
    rst,
    sparsify,
)
from tests.sparsity.naive import COMMON, END, run


def test_mask_metrics_are_those_of_the_history():
    for name in ("set", "gmp"):
        states = []
        history = run(make_rule(name, **COMMON), END + 2, states=states)
        union = history[0]
        for before, masks, state in zip(history, history[1:], states, strict=False):
            union = explored(union, masks)
            metrics = mask_metrics(state)
            assert metrics["density"] == density(masks)
            assert metrics["explored"] == density(union)
            if churn(before, masks) > 0:
                assert metrics["churn"] == churn(before, masks)
    params = {"w": jnp.ones((3, 4))}
    assert mask_metrics(sparsify(optax.sgd(0.1), make_rule("rst", density=0.5)).init(params)) == {
        "density": 0.5
    }


@pytest.mark.parametrize(
    ("made_with", "used_with"),
    [
        (make_rule("dense"), rst(0.2)),
        (rst(0.2), make_rule("rigl", density=0.2, end_step=9, update_every=2)),
        (make_rule("rigl", density=0.2, end_step=9, update_every=2), rst(0.2)),
        (make_rule("set", density=0.2, end_step=900), make_rule("snfs", density=0.2, end_step=900)),
    ],
)
def test_a_state_of_another_rule_is_no_dense_run(made_with, used_with):
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    state = sparsify(optax.sgd(0.1), made_with).init(params)
    with pytest.raises(ValueError, match=r"not one of this sparsify: make it with tx.init"):
        sparsify(optax.sgd(0.1), used_with).update(params, state, params)


def test_a_state_of_no_rule_or_of_other_parameters():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    tx = sparsify(optax.sgd(0.1), rst(0.2))
    with pytest.raises(ValueError, match="not one of this sparsify"):
        tx.update(params, optax.sgd(0.1).init(params), params)
    other = tx.init({"w": jnp.ones((1, 5)), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mask of w has shape \(1, 5\)"):
        tx.update(params, other, params)
