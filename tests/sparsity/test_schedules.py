"""Schedules against values computed by hand."""

import jax
import numpy as np
import pytest

from cka_sr_jax.sparsity import constant, cosine, cubic_counts, linear
from cka_sr_jax.sparsity.schedules import periodic


def test_schedules_between_their_ends():
    """cos(pi / 4), computed by hand."""
    np.testing.assert_allclose(cosine(0.4, 100, 0.1)(25), 0.1 + 0.15 * (1 + 0.70710678), rtol=1e-6)
    np.testing.assert_allclose(linear(0.4, 100, 0.1)(25), 0.325, rtol=1e-6)


def test_schedules_at_their_ends():
    for schedule in (cosine(0.4, 100, 0.1), linear(0.4, 100, 0.1)):
        np.testing.assert_allclose([schedule(t) for t in (0, 50, 100, 150)], [0.4, 0.25, 0.1, 0.1])
    assert constant(0.25)(7) == 0.25
    due = periodic(4, 14, start_step=2, also=13)
    assert [t for t in range(20) if due(t)] == [2, 6, 10, 13, 14]
    assert [t for t in range(20) if periodic(4, 8)(t)] == [4, 8]


def test_counts_of_gradual_pruning():
    """By hand: of 1000 weights 100 are left; at a quarter of the way (3/4)^3 of the rest are."""
    count = cubic_counts(1000, 100, start_step=10, end_step=30, update_every=5)
    steps = {0: 1000, 10: 1000, 15: 480, 20: 212, 25: 114, 30: 100, 99: 100}
    assert {step: int(count(step)) for step in steps} == steps
    assert int(count(17)) == 480  # between updates, that of the last one
    # An end that is no multiple of the period, and counts that float32 does not hold.
    count = cubic_counts(100_000_001, 50_000_001, start_step=0, end_step=7, update_every=3)
    expected = {t: 50_000_001 + round(50_000_000 * ((7 - t) / 7) ** 3) for t in (3, 6, 7)}
    assert {step: int(jax.jit(count)(step)) for step in expected} == expected
    # One shot.
    count = cubic_counts(1000, 100, start_step=4, end_step=4, update_every=100)
    assert [int(count(step)) for step in (0, 3, 4, 5)] == [1000, 1000, 100, 100]


@pytest.mark.parametrize(
    "call",
    [lambda: cosine(0.3, 0), lambda: linear(0.3, 10, floor=0.4), lambda: periodic(1, 4, 5)],
)
def test_impossible_schedules(call):
    with pytest.raises(ValueError, match=r"end_step|final_drop_fraction"):
        call()
