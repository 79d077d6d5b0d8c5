"""Paired comparisons against hand-computed values."""

import math

import numpy as np
import pytest

from cka_sr_jax.analysis import comparison, paired
from cka_sr_jax.analysis.comparison import (
    CHOOSE,
    choose_and_compare,
    choose_by_others,
    compare,
    comparisons,
)
from cka_sr_jax.analysis.paired import main, paired_table
from cka_sr_jax.analysis.runs import write_csv


def rows_of(table, density=0.05):
    """{beta: [(validation, test) of seed 0, 1, ...]} as rows."""
    return [
        {
            "seed": seed,
            "penalty.beta": beta,
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
    """The figures of `choose_and_compare`: three values that do nothing, one accuracy for both."""
    monkeypatch.setattr(comparison, "BOOTSTRAP_SAMPLES", 1)  # which are not looked at
    rng, covered = np.random.default_rng(seeds), {CHOOSE: 0, 1: 0}
    for _ in range(2000):
        skill = rng.normal(size=(4, seeds))
        skill[0] *= spread  # of the baseline, against that of the others
        rows = rows_of({value: [(s, s) for s in line] for value, line in enumerate(skill)})
        for value in covered:
            found = choose_and_compare(rows, "penalty.beta", 0, value)
            covered[value] += abs(found.difference) < found.t_interval
    assert covered[CHOOSE] / 2000 == pytest.approx(said, abs=0.02)
    assert covered[1] / 2000 == pytest.approx(0.95, abs=0.02)


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


def test_command_line(tmp_path, capsys):
    rows = rows_of(TABLE) + rows_of({0.0: [(0.1, 0.2)], 1e-4: [(0.1, 0.3)]}, density=0.01)
    rows += rows_of({0.0: [(0.1, 0.2)]}, density=0.002)
    write_csv(rows, tmp_path / "runs.csv")
    png, again = tmp_path / "runs.png", tmp_path / "again.csv"
    main([str(tmp_path / "runs.csv"), f"--png={png}", f"--csv={again}"])
    assert png.exists()
    assert len(again.read_text().splitlines()) == 13
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "| 0.002 |" + " - |" * 8  # nothing to compare with yet
    assert printed[3] == "| 0.01 | 20.00 | 0.0001 (1 of 1) | 1 | 30.00 | +10.00 |  | 1 | 1/0/0 |"
    assert printed[4].startswith("| 0.05 | 82.00 | 0.0001 (3 of 3) | 2 | 82.00 | +0.00 ± 2.48 |")
    assert printed[4].endswith("| 3 | 1/1/1 |")
    assert len(printed) == 5  # nothing else to say
    asked = (["sparsity.density"], "penalty.beta", 0.0)
    assert "\n".join(printed) == paired_table(comparisons(rows, *asked), *asked)
    with pytest.raises(SystemExit, match=r"Unknown field of these runs: 'penalty.bta'"):
        main([str(tmp_path / "runs.csv"), "--field=penalty.bta"])
    with pytest.raises(SystemExit, match=r"a comparison needs 7 and another, with the same seeds"):
        main([str(tmp_path / "runs.csv"), "--baseline=7"])
    with pytest.raises(SystemExit, match=r"Unknown figure of a run: 'cka_within': did you mean"):
        main([str(tmp_path / "runs.csv"), "--measure=cka_within"])


def test_each_value_has_a_column(tmp_path, capsys, monkeypatch):
    rows = rows_of(TABLE) + rows_of({0.0: [(0.1, 0.2)], 1e-4: [(0.1, 0.3)]}, density=0.01)
    for row in rows:
        row["cka_within_stage"] = 0.9 - 100 * row["penalty.beta"]
    write_csv(rows, tmp_path / "runs.csv")
    command, drawn = [str(tmp_path / "runs.csv"), "--each"], {}
    monkeypatch.setattr(paired, "write_png", lambda figure, path: drawn.update({path: figure}))
    main([*command, "--png=runs.png"])
    assert capsys.readouterr().out.splitlines() == [
        "| density | accuracy (%) at beta 0 | beta 0.0001 (pairs) | beta 0.001 (pairs) |",
        "| --- | ---: | ---: | ---: |",
        "| 0.01 | 20.00 | +10.00 (1) | - |",
        "| 0.05 | 82.00 | +0.00 ± 2.48 (3) | +17.00 ± 4.97 (3) |",
    ]
    (axes,) = drawn["runs.png"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0.01 0.0001 (1 pairs)", "0.05 0.0001 (3 pairs)", "0.05 0.001 (3 pairs)",
    ]  # fmt: skip
    assert axes.get_title() == "penalty.beta, against 0"
    points = [container[0].get_xydata()[0] for container in axes.containers]
    np.testing.assert_allclose(points, [[10, 0], [0, 1], [17, 2]], atol=1e-9)
    main([*command, "--measure=cka_within_stage"])
    assert capsys.readouterr().out.splitlines()[3] == (
        "| 0.05 | 0.90 | -0.01 ± 0.00 (3) | -0.10 ± 0.00 (3) |"
    )
    rows[0]["cka_within_stage"] = None  # as of a run that diverged
    write_csv(rows, tmp_path / "runs.csv")
    main([*command, "--measure=cka_within_stage"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[3] == "| 0.05 | 0.90 | -0.01 ± 0.00 (2) | -0.10 ± 0.00 (2) |"
    assert len(printed) == 4  # the pairs are in the table
    main([command[0], "--value=1e-3", "--measure=cka_within_stage"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("0.05: 1 seeds left out")
    # A value that has nothing in common with the baseline has an empty column.
    write_csv([*rows, rows[0] | {"penalty.beta": 0.5, "seed": 9}], tmp_path / "runs.csv")
    main(command)
    assert capsys.readouterr().out.splitlines()[3].endswith("| - |")
    with pytest.raises(SystemExit, match=r"with the same seeds, and explored of them\."):
        main([*command, "--measure=explored"])
    write_csv(rows_of({0.0: [(0.1, 0.2)]}), tmp_path / "runs.csv")
    with pytest.raises(SystemExit, match=r"comparison needs 0.0 and another"):
        main(command)


def test_pairs_that_are_missing_are_said(tmp_path, capsys):
    rows = rows_of(TABLE | {1e-3: TABLE[1e-3][:1]})
    write_csv(rows, tmp_path / "runs.csv")
    main([str(tmp_path / "runs.csv")])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "0.05: 2 seeds left out, of which some value has no run or no measure.",
        "",
        "0.05: chosen by the pair's own validation data, so too high.",
    ]


def test_values_that_are_no_numbers(tmp_path, capsys):
    rows = [
        {"seed": seed, "penalty.similarity": name, "eval.select": "best-test", "test.accuracy": 0.5}
        for seed in (0, 1)
        for name in ("cka", "cca")
    ]
    write_csv(rows, tmp_path / "runs.csv")
    command = [str(tmp_path / "runs.csv"), "--field=penalty.similarity", "--rows=eval.select"]
    main([*command, "--baseline=cca", "--value=cka"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("| select | similarity cca | chosen similarity (pairs) |")
    assert printed[2].startswith("| best-test | 50.00 | cka (2 of 2) | 1 | 50.00 | +0.00 ± 0.00 |")
    assert printed[-1] == (
        "Runs with eval.select=best-test: their weights were selected on the test set."
    )


def test_none_is_a_value_like_others(tmp_path, capsys):
    """As of options that are the rule's own default where they are not given."""
    accuracies = {None: 0.5, 0.3: 0.6, 0.5: 0.7}
    rows = [
        {"seed": seed, "sparsity.drop_fraction": value, "eval.select": "last"}
        | {"validation.accuracy": accuracy, "test.accuracy": accuracy}
        for value, accuracy in accuracies.items()
        for seed in (0, 1)
    ]
    write_csv(rows, tmp_path / "runs.csv")
    command = [str(tmp_path / "runs.csv"), "--field=sparsity.drop_fraction", "--rows=eval.select"]
    main([*command, "--baseline=0.5", "--each"])
    assert capsys.readouterr().out.splitlines()[2] == (
        "| last | 70.00 | -20.00 ± 0.00 (2) | -10.00 ± 0.00 (2) |"
    )
    main([*command, "--baseline=0.5", "--value="])
    assert "| None (2 of 2) | 1 | 50.00 |" in capsys.readouterr().out
    main([*command, "--baseline=0.5"])
    assert "| 0.3 (2 of 2) | 2 | 60.00 |" in capsys.readouterr().out
