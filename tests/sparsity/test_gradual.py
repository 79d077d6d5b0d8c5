"""GMP and GraNet against a naive NumPy loop, and what they refuse."""

import math

import jax
import numpy as np
import pytest

from cka_sr_jax.sparsity import cosine, density, make_rule
from tests.sparsity.naive import COMMON, END, SHAPES, check_memory, check_updates, run

RULES = {
    "gmp": ("gmp", {}, None),
    "gmp_erk": ("gmp", {"distribution": "erk"}, None),
    "granet": ("granet", {"initial_density": 0.6}, cosine(0.5, END, 0.005)),
    "granet_dense": ("granet", {"initial_density": 1.0}, cosine(0.5, END, 0.005)),
}


@pytest.mark.parametrize("name", RULES)
def test_updates_are_those_of_a_naive_loop(name):
    rule, options, share = RULES[name]
    check_updates(name, make_rule(rule, **COMMON, **options), share or (lambda step: 0))


@pytest.mark.parametrize(
    ("rule", "initial"),
    [
        (make_rule("gmp", density=0.1, start_step=3, end_step=20, update_every=4), 1.0),
        (make_rule("granet", density=0.1, start_step=3, end_step=20, update_every=4), 0.5),
        (
            make_rule(
                "granet",
                density=0.1,
                start_step=3,
                end_step=30,
                prune_end_step=20,
                update_every=4,
                initial_density=1.0,
            ),
            1.0,
        ),
    ],
)
def test_density_follows_the_cubic_schedule(rule, initial):
    history = [float(density(masks)) for masks in run(rule, 32)]
    size = sum(np.prod(shape) for shape in SHAPES.values())
    start = history[0]
    assert abs(start - initial) <= 3 / size  # each layer rounds its own count
    expected = start
    for step, actual in enumerate(history[1:]):
        if step in (3, 7, 11, 15, 19, 20):
            expected = 0.1 + (start - 0.1) * (1 - (step - 3) / 17) ** 3
        assert abs(actual - expected) <= 1 / size, step
    assert round(history[-1] * size) == round(0.1 * size)


def test_one_shot_pruning_is_gmp_at_one_step():
    rule = make_rule("gmp", density=0.2, start_step=3, end_step=3)
    history = run(rule, 6)
    sizes = [sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) for masks in history]
    whole = sum(math.prod(shape) for shape in SHAPES.values())
    assert sizes == [whole] * 4 + [round(0.2 * whole)] * 3


GOOD = {"density": 0.1, "end_step": 100}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gmp", {"end_step": float("nan")}, "end_step=nan is not a number of steps"),
        ("gmp", {"start_step": 101}, "end_step=100 does not come after start_step=101"),
        ("gmp", {"end_step": 0}, "end_step=0 does not come after start_step=0"),
        ("gmp", {"start_step": -1}, "start_step=-1 is negative"),
        ("gmp", {"density": 1.5}, "density=1.5 is not in"),
        ("granet", {"initial_density": 0.05}, "initial_density=0.05 is below density=0.1"),
        ("granet", {"prune_end_step": 200}, "prune_end_step=200 comes after end_step=100"),
        ("granet", {"start_step": 150}, "does not come after start_step=150"),
    ],
)
def test_impossible_options_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_rule(name, **(GOOD | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gmp", "granet"])
def test_an_update_needs_less_than_three_times_the_memory_of_the_parameters(name):
    check_memory(name)
