"""What a run records as its masks change, and what it shows while it trains."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.models import vit
from cka_sr_jax.training import recorder
from cka_sr_jax.workflows import run
from tests.report.events import events
from tests.report.fake_wandb import install
from tests.training.runs import records, small_config

ROOT = Path(__file__).parents[2]
LAYERS = ("hidden0", "hidden1", "hidden2", "head")  # as the model applies them


def test_a_rule_that_changes_its_masks_reports_them(tmp_path):
    """Options come from the config; density, churn, R_s and training FLOPs go to the records."""
    config = small_config(
        sparsity__rule="gmp",
        sparsity__distribution="global",
        sparsity__update_every=5,
        sparsity__start=0.25,
        sparsity__end=0.5,
        train__log_every=1,
        penalty__beta=0.0,
    )
    result = run(config, tmp_path)
    training = records(tmp_path, "train")
    density = [r["density"] for r in training]
    # At its first step, 10, the schedule is where it starts: dense.
    assert [step for step in range(1, 40) if density[step] != density[step - 1]] == [15, 20]
    assert density[-1] == pytest.approx(0.2, abs=1e-4)
    assert result["explored"] == 1
    # Every update is on record: what it changed, and the FLOPs that are left.
    updates = records(tmp_path, "masks")
    assert [r["step"] for r in updates] == [11, 16, 21]
    sizes = [r["density"] for r in updates]
    assert updates[0]["churn"] == 0
    for (before, after), record in zip(itertools.pairwise(sizes), updates[1:], strict=True):
        assert record["churn"] == pytest.approx((before - after) / (before + after), rel=1e-5)
    assert result["churn"] == updates[-1]["churn"] > 0
    (layers,) = [r for r in records(tmp_path, "layers") if r["step"] == 40]
    assert sum(v for k, v in layers.items() if k.startswith("flops/")) == updates[-1]["flops"]
    assert training[-1]["training_flops"] == result["training_flops"]
    # The masks that a record tells of are those of the next step.
    used = [2 * (64 * 32 + 2 * 32 * 32 + 32 * 10), *(r["flops"] for r in training[:-1])]
    assert result["training_flops"] == sum(3 * 64 * flops for flops in used)
    assert (tmp_path / "report" / "mask_curves.png").exists()


def test_layers_stand_in_the_order_of_the_forward_pass(finished):
    workdir, _, printed = finished
    lines = (workdir / "report" / "layers.csv").read_text().splitlines()[1:]
    assert [line.split("/")[0] for line in lines[::2]] == list(LAYERS)
    shown = [line.split("/")[0].strip() for line in printed if "/kernel" in line]
    assert shown == list(LAYERS)
    names = [name for name in records(workdir, "layers")[0] if name.startswith("density/")]
    assert names == [f"density/{layer}/kernel" for layer in LAYERS]


def test_tensorboard_has_every_record_the_kept_weights_and_cka(finished):
    workdir, result, _ = finished
    found = events(workdir)
    for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        for name, value in record.items():
            if name not in ("split", "step", "epoch") and value is not None:
                assert (record["step"], pytest.approx(value)) in found[f"{record['split']}/{name}"]
    kept = 0
    for layer in LAYERS:
        first, last = found[f"weights/{layer}/kernel"]
        assert (first[0], last[0]) == (20, 40)
        kept += last[1].num
    biases = 32 * 3 + 10
    assert kept == result["parameters_kept"] - biases
    assert [step for step, _ in found["cka"]] == [20, 40]


def test_a_run_that_often_evaluates_shows_few_pictures(tmp_path, blank_images):
    run(small_config(train__steps=25, eval__every=1), tmp_path, Console(quiet=True))
    steps = [step for step, _ in events(tmp_path)["cka"]]
    assert len(steps) == recorder.PICTURES
    assert steps[-1] == 25
    assert {b - a for a, b in itertools.pairwise(steps)} == {1, 2}


def test_wandb_gets_what_a_stopped_and_resumed_run_records(tmp_path, monkeypatch, blank_images):
    wandb, config = install(monkeypatch), small_config(report__wandb="sparse")
    average, logs = recorder.mean_metrics, []

    def stopped_at_the_third(steps):
        logs.append(len(steps))
        if len(logs) == 3:
            raise OSError("no space left")
        return average(steps)

    monkeypatch.setattr(recorder, "mean_metrics", stopped_at_the_third)
    with pytest.raises(OSError, match="no space"):
        run(config, tmp_path, Console(quiet=True))
    wandb.step = 21  # as W&B says when it resumes a run whose last record was of step 20
    result = run(config, tmp_path, Console(quiet=True))
    first, resumed = wandb.runs
    assert (first.exit_code, resumed.exit_code) == (1, 0)
    assert first.options["id"] == resumed.options["id"]
    assert first.options["config"]["sparsity"]["density"] == 0.2
    assert resumed.summary == result
    assert list(first.logged) == [10, 20]
    assert list(resumed.logged) == [30, 40, None]
    logged = first.logged | resumed.logged
    for record in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        split, step = record.pop("split"), record.pop("step")
        if step != 20:  # which was logged once more, over the steps since the checkpoint
            shown = {f"{split}/{name}": value for name, value in record.items()}
            assert shown.items() - logged[step].items() <= {(k, None) for k in shown}
    assert logged[40]["weights/hidden0/kernel"][0] == "histogram"
    assert logged[40]["cka"][0] == "image"
    assert logged[None]["cka_heatmap"] == (
        "image", str(tmp_path / "report" / "cka_heatmap.png")
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_the_true_wandb_records_offline(tmp_path):
    arguments = ["--config.train.steps=40", "--config.report.wandb=sparse"]
    done = subprocess.run(
        [sys.executable, "launch.py", f"--workdir={tmp_path / 'run'}", *arguments], cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "W&B is offline; to send this run: wandb sync" in done.stdout
    assert "W&B failed" not in done.stdout
    stored = (tmp_path / "run" / "wandb" / "id").read_text().strip()
    (file,) = tmp_path.glob(f"run/wandb/offline-run-*-{stored}/run-{stored}.wandb")
    content = file.read_bytes()
    for key in (b"train/loss", b"weights/hidden0/kernel", b"cka_heatmap", b"accuracy"):
        assert key in content


def test_tokens_that_inference_removes_cost_training_in_full(tmp_path, monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", (16, 2, 2))
    results = {}
    for remove in (True, False):
        config = small_config(sparsity__rule="dense", sparsity__density=1.0, train__steps=2)
        config.model.name, config.penalty.beta = "vit-micro", 0.0
        config.model.options = ConfigDict({"patch": 2, "keep_rates": (0.5,), "remove": remove})
        results[remove] = run(config, tmp_path / str(remove), Console(quiet=True))
    assert results[True]["flops"] < results[False]["flops"]
    full = 3 * 64 * 2 * results[False]["flops"]
    assert results[True]["training_flops"] == results[False]["training_flops"] == full
