"""Statistics of paired comparisons, against hand-computed values and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from cka_sr_jax.analysis import comparison
from cka_sr_jax.analysis.comparison import (
    CHOOSE,
    choose_and_compare,
    choose_by_others,
    compare,
    comparisons,
    pairs_needed,
)
from tests.analysis.accuracies import TABLE, rows_of


def test_intervals():
    mean, half_width, (low, high) = compare([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    # Student's t at 3 degrees of freedom is 3.182; the sample deviation is sqrt(14 / 3).
    assert half_width == pytest.approx(3.182446 * math.sqrt(14 / 3) / 2, rel=1e-6)
    rng = np.random.default_rng(1)
    means = rng.choice([1.0, 2.0, 3.0, 6.0], (20_000, 4)).mean(axis=1)
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=0.26)
    assert compare([0.5, 0.5, 0.5]) == (0.5, 0.0, (0.5, 0.5))
    assert math.isnan(compare([0.5])[1])
    with pytest.raises(ValueError, match="no pairs to compare"):
        compare([])


@pytest.mark.parametrize("gain", [3.0, 1.0, 0.31, 0.05])
def test_the_fewest_pairs_that_tell_a_gain(gain):
    needed = pairs_needed(1.0, gain)
    widths = [stats.t.ppf(0.975, n - 1) / math.sqrt(n) for n in range(2, 2000)]
    assert needed == 2 + next(i for i, width in enumerate(widths) if width <= gain)


def test_the_choice_is_by_validation_data_and_pairs_are_by_seed():
    found = choose_and_compare(rows_of(TABLE), "penalty.beta", 0.0)
    assert (found.chosen, found.candidates, found.pairs) == ({1e-4: 3}, 2, 3)
    assert found.difference == pytest.approx(0.0, abs=1e-9)
    assert (found.wins, found.losses) == (1, 1)
    assert (found.baseline, found.changed) == (pytest.approx(82), pytest.approx(82))
    # A seed that one side lacks is no pair.
    fewer = [row for row in rows_of(TABLE) if (row["penalty.beta"], row["seed"]) != (0.0, 0)]
    assert choose_and_compare(fewer, "penalty.beta", 0.0).difference == pytest.approx(-0.5)
    assert choose_and_compare(rows_of(TABLE), "penalty.beta", 0.0, value=1e-3).changed == 99
    # And so is one that a value lacks which might have been chosen.
    fewer = [row for row in rows_of(TABLE) if (row["penalty.beta"], row["seed"]) != (1e-3, 2)]
    found = choose_and_compare(fewer, "penalty.beta", 0.0)
    assert (found.pairs, found.left_out) == (2, 1)
    assert choose_and_compare(fewer, "penalty.beta", 0.0, value=1e-4).pairs == 3
    assert comparisons(rows_of(TABLE), [], "penalty.beta", 0.5) == {(): None}


def test_each_seed_has_the_value_that_the_others_choose():
    table = {
        0.0: [(0.5, 0.80), (0.5, 0.80), (0.5, 0.80)],
        1e-4: [(0.9, 0.81), (0.5, 0.82), (0.5, 0.83)],  # its best seed alone has it elsewhere
        1e-3: [(0.6, 0.91), (0.6, 0.92), (0.6, 0.93)],
    }
    found = choose_and_compare(rows_of(table), "penalty.beta", 0.0)
    assert found.chosen == {1e-4: 2, 1e-3: 1}
    assert found.changed == pytest.approx((91 + 82 + 83) / 3)
    assert found.difference == pytest.approx((11 + 2 + 3) / 3)
    # Of equals the first, in whatever order they are added up.
    equals = np.array([[0.5, 0.1, 0.2, 0.3], [0.5, 0.3, 0.2, 0.1]])
    assert choose_by_others(equals)[0] == choose_by_others(equals[::-1])[0] == 0
    # A single seed has no others.
    assert choose_by_others(np.array([[0.5], [0.7], [0.7]])).tolist() == [1]


def test_a_field_that_does_nothing_gains_nothing():
    """Grids of noise: chosen by the very networks that are tested, the best of 5 seems to gain."""
    rng = np.random.default_rng(0)
    gains, own = [], []
    for _ in range(2000):
        skill = rng.normal(size=(6, 3))  # of each network: in both of its accuracies
        validation = skill + 0.1 * rng.normal(size=skill.shape)
        choice = choose_by_others(validation[1:])
        gains.append(np.mean(skill[1:][choice, range(3)] - skill[0]))
        own.append(np.mean(skill[1:][validation[1:].mean(axis=1).argmax()] - skill[0]))
    assert np.mean(own) > 0.5
    assert abs(np.mean(gains)) < 4 * np.std(gains) / np.sqrt(len(gains))


@pytest.mark.parametrize(
    ("seeds", "spread", "said"), [(3, 1, 0.93), (5, 1, 0.92), (20, 1, 0.86), (5, 0, 0.88)]
)
def test_intervals_of_a_choice_cover_what_is_said(seeds, spread, said, monkeypatch):
    """The figures of `choose_and_compare`: three values that do nothing, one accuracy for both.

    The simulation has formulas of its own, which are `choose_and_compare` in its first grids.
    """
    skill = np.random.default_rng(seeds).normal(size=(2000, 4, seeds))  # [grids, values, seeds]
    skill[:, 0] *= spread  # of the baseline, against that of the others
    others = skill[:, 1:]
    of_the_other_seeds = others.sum(axis=2, keepdims=True) - others
    choice = of_the_other_seeds.argmax(axis=1)[:, None]
    changed = {CHOOSE: np.take_along_axis(others, choice, axis=1)[:, 0], 1: skill[:, 1]}
    differences = np.stack([line - skill[:, 0] for line in changed.values()])
    mean = differences.mean(axis=2)
    deviation = np.sqrt(((differences - mean[..., None]) ** 2).sum(axis=2) / (seeds - 1))
    interval = stats.t.ppf(0.975, seeds - 1) * deviation / np.sqrt(seeds)
    np.testing.assert_allclose((abs(mean) < interval).mean(axis=1), [said, 0.95], atol=0.02)

    monkeypatch.setattr(comparison, "BOOTSTRAP_SAMPLES", 1)  # which are not looked at
    for grid in range(50):
        rows = rows_of({value: [(s, s) for s in line] for value, line in enumerate(skill[grid])})
        for index, value in enumerate(changed):
            found = choose_and_compare(rows, "penalty.beta", 0, value)
            assert found.difference == pytest.approx(100 * mean[index, grid])
            assert found.t_interval == pytest.approx(100 * interval[index, grid])


def test_runs_without_an_accuracy_are_named():
    rows = rows_of(TABLE)
    rows[4]["validation.accuracy"] = None
    with pytest.raises(ValueError, match=r"with penalty.beta = 0.0001 have no validation.accuracy"):
        choose_and_compare(rows, "penalty.beta", 0.0)
    assert choose_and_compare(rows, "penalty.beta", 0.0, value=1e-4).pairs == 3


def test_runs_that_differ_in_something_else_are_no_pairs():
    rows = rows_of(TABLE) + rows_of(TABLE, density=0.01)
    with pytest.raises(ValueError, match=r"differ in sparsity.density \(0.01, 0.05\): name it"):
        choose_and_compare(rows, "penalty.beta", 0.0)
