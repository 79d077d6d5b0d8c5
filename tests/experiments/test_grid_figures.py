"""Figures of a grid: hand-made run folders, and what the command says when something is missing."""

import csv
import json

import numpy as np
import pytest

from cka_sr_jax.experiments import figures
from cka_sr_jax.training import Checkpoints

PNG = b"\x89PNG"
NAMES = ("stage1.0", "stage1.1", "stage2.0")


@pytest.fixture
def grid(tmp_path):
    """Two betas with two seeds each, as finished runs of made-up figures."""
    for beta in (0.0, 0.01):
        for seed in (0, 1):
            run = tmp_path / "grid" / f"beta={beta},seed={seed}"
            (run / "report").mkdir(parents=True)
            config = {
                "seed": seed,
                "cka": {"beta": beta},
                "eval": {"select": "last"},
                "sparsity": {"rule": "rst"},
            }
            (run / "config.json").write_text(json.dumps(config))
            (run / "result.json").write_text("{}")
            with (run / "report" / "cka_matrix.csv").open("w", newline="") as file:
                matrix = np.eye(3) * (1 - beta)
                rows = ([name, *row] for name, row in zip(NAMES, matrix, strict=True))
                csv.writer(file).writerows([["feature", *NAMES], *rows])
            record = {"split": "validation", "epoch": 1.0, "cka_within_stage": 0.5}
            record["cka_cross_stage"] = 0.25
            (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            checkpoints = Checkpoints(run)
            kernel = np.array([[0.0, 0.5], [-0.25, 0.0]], np.float32)
            checkpoints.save(1, {"state": {"params": {"head": {"kernel": kernel}}}})
            checkpoints.close()
    return tmp_path / "grid"


@pytest.mark.parametrize("kind", figures.DRAW)
def test_each_figure_from_the_command_line(grid, tmp_path, kind):
    png = tmp_path / "figure.png"
    figures.main([kind, str(grid), str(png)])
    assert png.read_bytes().startswith(PNG)


def test_one_run_for_each_value(grid):
    runs = figures.runs_by_value([grid], "cka.beta")
    assert {beta: run.name for beta, run in runs.items()} == {
        0.0: "beta=0.0,seed=0",
        0.01: "beta=0.01,seed=0",
    }
    only = figures.runs_by_value([grid / "beta=0.01,seed=1"], "seed")
    assert list(only) == [1]
    np.testing.assert_array_equal(figures.kept_weights(runs[0.0]), [0.5, -0.25])


def test_lines_and_differences():
    lines = {"rst": {0.05: [80.0, 82.0], 0.01: [70.0]}, "rigl": {0.05: [83.0]}}
    assert figures.draw_lines(lines, "density", "accuracy").startswith(PNG)
    assert figures.draw_lines({"all": {"a": [1.0], "b": [2.0]}}, "rule", "x").startswith(PNG)
    assert figures.draw_differences({"rst": (0.1, 0.2), "set": (0.0, np.nan)}).startswith(PNG)


def test_what_is_missing_is_one_sentence(grid, tmp_path):
    with pytest.raises(SystemExit, match="no finished run there"):
        figures.main(["curves", str(tmp_path), "x.png"])
    with pytest.raises(SystemExit, match=r"did you mean 'cka\.beta'"):
        figures.main(["curves", str(grid), "x.png", "--field=cka.bate"])
    for run in grid.glob("*"):
        (run / "metrics.jsonl").unlink()
        (run / "report" / "cka_matrix.csv").unlink()
    with pytest.raises(SystemExit, match="logged no CKA"):
        figures.main(["curves", str(grid), "x.png"])
    with pytest.raises(SystemExit, match=r"has no report/cka_matrix.csv"):
        figures.main(["heatmaps", str(grid), "x.png"])
