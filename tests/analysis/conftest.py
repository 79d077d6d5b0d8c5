"""Folders of made-up finished runs."""

import csv
import json

import numpy as np
import pytest

from cka_sr_jax.training import Checkpoints

NAMES = ("stage1.0", "stage1.1", "stage2.0")


@pytest.fixture
def grid(tmp_path):
    """Four finished runs of made-up accuracies, and one that is not finished."""
    accuracies = {("rst", 0.05): (0.5, 0.7), ("rigl", 0.05): (0.8,), ("rigl", 0.01): (0.4,)}
    for (rule, density), values in accuracies.items():
        for seed, accuracy in enumerate(values):
            folder = tmp_path / "grid" / f"{rule}{density}{seed}"
            folder.mkdir(parents=True)
            config = {
                "seed": seed,
                "data": {"dir": f"somewhere{seed}"},
                "sparsity": {"rule": rule, "density": density, "exclude": []},
            }
            (folder / "config.json").write_text(json.dumps(config))
            result = {"test": {"accuracy": accuracy, "loss": 1.0}, "density": density}
            (folder / "result.json").write_text(json.dumps(result))
    (tmp_path / "grid" / "begun").mkdir()
    (tmp_path / "grid" / "begun" / "config.json").write_text("{}")
    return tmp_path / "grid"


@pytest.fixture
def featured(tmp_path):
    """Two betas with two seeds each, as finished runs of made-up figures."""
    for beta in (0.0, 0.01):
        for seed in (0, 1):
            run = tmp_path / "features" / f"beta={beta},seed={seed}"
            (run / "report").mkdir(parents=True)
            config = {
                "seed": seed,
                "penalty": {"beta": beta},
                "eval": {"select": "last"},
                "sparsity": {"rule": "rst"},
            }
            (run / "config.json").write_text(json.dumps(config))
            (run / "result.json").write_text(json.dumps({"test": {"loss": 1.0}}))
            with (run / "report" / "cka_matrix.csv").open("w", newline="") as file:
                matrix = np.eye(3) * (1 - beta)
                rows = ([name, *row] for name, row in zip(NAMES, matrix, strict=True))
                csv.writer(file).writerows([["feature", *NAMES], *rows])
            record = {"split": "validation", "step": 1, "epoch": 1.0, "cka_within_stage": 0.5}
            record["cka_cross_stage"] = 0.25
            (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            checkpoints = Checkpoints(run)
            kernel = np.array([[0.0, 0.5], [-0.25, 0.0]], np.float32)
            checkpoints.save(1, {"state": {"params": {"head": {"kernel": kernel}}}})
            checkpoints.close()
    return tmp_path / "features"
