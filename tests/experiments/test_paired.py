"""Paired comparisons against hand-computed values."""

import math

import numpy as np
import pytest

from cka_sr_jax.experiments.paired import choose_and_compare, compare, main, paired_table
from cka_sr_jax.experiments.rows import write_csv


def rows_of(table, density=0.05):
    """{beta: [(validation, test) of seed 0, 1, ...]} as rows."""
    return [
        {
            "seed": seed,
            "cka.beta": beta,
            "sparsity.density": density,
            "validation.accuracy": validation,
            "test.accuracy": test,
        }
        for beta, results in table.items()
        for seed, (validation, test) in enumerate(results)
    ]


TABLE = {
    0.0: [(0.5, 0.80), (0.5, 0.82), (0.5, 0.84)],
    1e-4: [(0.6, 0.81), (0.6, 0.82), (0.6, 0.83)],  # best on validation data
    1e-3: [(0.5, 0.99), (0.5, 0.99), (0.5, 0.99)],  # best on test data: must not be chosen
}


def test_intervals():
    mean, half_width, (low, high) = compare([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    # Student's t at 3 degrees of freedom is 3.182; the sample deviation is sqrt(14 / 3).
    assert half_width == pytest.approx(3.182446 * math.sqrt(14 / 3) / 2, rel=1e-6)
    rng = np.random.default_rng(1)
    means = [np.mean(rng.choice([1.0, 2.0, 3.0, 6.0], 4)) for _ in range(20_000)]
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=0.26)
    assert compare([0.5, 0.5, 0.5]) == (0.5, 0.0, (0.5, 0.5))
    assert math.isnan(compare([0.5])[1])
    with pytest.raises(ValueError, match="no pairs to compare"):
        compare([])


def test_the_choice_is_by_validation_data_and_pairs_are_by_seed():
    found = choose_and_compare(rows_of(TABLE), "cka.beta", 0.0)
    assert (found.chosen, found.candidates, found.pairs) == (1e-4, 2, 3)
    assert found.difference == pytest.approx(0.0, abs=1e-9)
    assert (found.wins, found.losses) == (1, 1)
    assert (found.baseline, found.changed) == (pytest.approx(82), pytest.approx(82))
    # A seed that one side lacks is no pair.
    fewer = [row for row in rows_of(TABLE) if (row["cka.beta"], row["seed"]) != (0.0, 0)]
    assert choose_and_compare(fewer, "cka.beta", 0.0).difference == pytest.approx(-0.5)
    assert choose_and_compare(rows_of(TABLE), "cka.beta", 0.0, value=1e-3).changed == 99
    with pytest.raises(ValueError, match=r"a comparison needs 0.5 and another"):
        choose_and_compare(rows_of(TABLE), "cka.beta", 0.5)


def test_runs_that_differ_in_something_else_are_no_pairs():
    rows = rows_of(TABLE) + rows_of(TABLE, density=0.01)
    with pytest.raises(ValueError, match=r"differ in sparsity.density \(0.01, 0.05\): name it"):
        choose_and_compare(rows, "cka.beta", 0.0)


def test_command_line(tmp_path, capsys):
    rows = rows_of(TABLE) + rows_of({0.0: [(0.1, 0.2)], 1e-4: [(0.1, 0.3)]}, density=0.01)
    write_csv(rows, tmp_path / "runs.csv")
    png, again = tmp_path / "runs.png", tmp_path / "again.csv"
    main([str(tmp_path / "runs.csv"), f"--png={png}", f"--csv={again}"])
    assert png.read_bytes().startswith(b"\x89PNG")
    assert len(again.read_text().splitlines()) == 12
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("| 0.05 | 82.00 | 0.0001 (2) | 82.00 | +0.00 ± 2.48 |")
    assert printed[3].startswith("| 0.01 | 20.00 | 0.0001 (1) | 30.00 | +10.00 ± nan |")
    assert "\n".join(printed) == paired_table(rows, ["sparsity.density"], "cka.beta", 0.0)
    with pytest.raises(SystemExit, match=r"Unknown field of these runs: 'cka.bta'"):
        main([str(tmp_path / "runs.csv"), "--field=cka.bta"])
