"""SET, RigL, SNFS and MEST against a naive NumPy loop, and what they refuse."""

import itertools

import jax.numpy as jnp
import optax
import pytest

from cka_sr_jax.sparsity import churn, constant, cosine, linear, make_rule, sparsify
from tests.sparsity.naive import COMMON, END, check_memory, check_updates, run

RULES = {
    "set": ("set", {}, cosine(0.3, END)),
    "rigl": ("rigl", {"schedule": "linear", "drop_fraction": 0.6}, linear(0.6, END)),
    "snfs": ("snfs", {"schedule": "constant"}, constant(0.3)),
    "mest": ("mest", {"gradient_weight": 0.5}, cosine(0.3, END)),
    "mest_soft": ("mest", {"soft": True}, cosine(0.3, END)),
}


@pytest.mark.parametrize("name", RULES)
def test_updates_are_those_of_a_naive_loop(name):
    rule, options, share = RULES[name]
    check_updates(name, make_rule(rule, **COMMON, **options), share)


def test_masks_freeze_after_end_step():
    history = run(
        make_rule("set", density=0.3, end_step=6, update_every=2, schedule="constant"), 12
    )
    changed = [float(churn(a, b)) > 0 for a, b in itertools.pairwise(history)]
    assert [step for step, moved in enumerate(changed) if moved] == [2, 4, 6]


def test_snfs_grows_by_the_average_of_dense_gradients():
    """One large early gradient outlives a small recent one in the average, not in RigL."""
    params = {"w": jnp.array([[3.0, 2.0, 1.0, 0.0, 0.0]])}
    masks = {"w": jnp.array([[True, True, True, False, False]])}
    grads = [jnp.array([[0, 0, 0, 5.0, 0]]), jnp.array([[0, 0, 0, 0, 0.1]])]
    options = dict(density=0.6, end_step=9, update_every=1, drop_fraction=constant(0.4))
    for name, expected in (("snfs", [1, 1, 0, 1, 0]), ("rigl", [1, 1, 0, 0, 1])):
        tx = sparsify(optax.sgd(0.0), make_rule(name, **options))
        state = tx.init(params)._replace(masks=masks)
        for grad in grads:
            _, state = tx.update({"w": grad}, state, params)
        assert state.masks["w"].astype(int).tolist() == [expected]


GOOD = {"density": 0.1, "end_step": 100}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rigl", {"update_every": 0}, "update_every=0 is not a number of steps"),
        ("rigl", {"end_step": 0}, "end_step=0 "),
        ("rigl", {"update_every": 101}, "update_every=101 is more than the 100 steps from"),
        ("mest", {"gradient_weight": -1.0}, "gradient_weight=-1.0 is not a number of 0 or more"),
        ("set", {"drop_fraction": 0.0}, r"drop_fraction=0.0 is not in \(0, 1\)"),
        ("set", {"drop_fraction": 1.0}, r"drop_fraction=1.0 is not in \(0, 1\)"),
        ("set", {"schedule": "cosin"}, "Unknown drop-fraction schedule 'cosin': did you mean"),
        ("set", {"grow": "randon"}, "Unknown score 'randon': did you mean 'random'?"),
        ("rigl", {"density": 0.0}, r"density=0.0 is not in \(0, 1\]"),
        ("snfs", {"momentum": 1.0}, r"momentum=1.0 is not in \(0, 1\)"),
        ("rigl", {"update_every": 2.5}, "update_every=2.5 is not a number of steps: pass a whole"),
        ("set", {"density": "0.1"}, r"density='0.1' is not in \(0, 1\]"),
        (
            "set",
            {"final_drop_fraction": 0.4},
            r"final_drop_fraction=0.4 is not in \[0, 0.3\]",
        ),
    ],
)
def test_impossible_options_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_rule(name, **(GOOD | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rigl", "mest"])
def test_an_update_needs_less_than_three_times_the_memory_of_the_parameters(name):
    check_memory(name)
