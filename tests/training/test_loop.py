"""Whole runs: what they leave behind, and that an interrupted one ends as if it never was."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.data import normalize
from cka_sr_jax.models import create_model
from cka_sr_jax.similarity import cka_penalty
from cka_sr_jax.sparsity import get_masks, layer_counts, leaf_paths
from cka_sr_jax.training import (
    Checkpoints,
    ConfigError,
    default_config,
    load_variables,
    loop,
    methods,
    new_state,
    prepare,
    replicate,
)
from cka_sr_jax.training import build as build_module
from cka_sr_jax.training import result as result_module
from cka_sr_jax.training.evaluation import make_evaluator
from cka_sr_jax.training.recorder import Recorder
from cka_sr_jax.workflows import run

ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "tfds"


def small_config(**fields):
    config = default_config()
    config.model.options.hidden = (32, 32, 32)
    config.train.steps = 40
    config.train.batch_size = 64
    config.train.log_every = 10
    config.checkpoint.every = 15
    config.sparsity.density = 0.2
    config.penalty.every = 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def arrays(workdir):
    checkpoints = Checkpoints(workdir)
    found = checkpoints.arrays()
    checkpoints.close()
    return {path: value for path, value in found.items() if path != "seconds"}


def assert_same_run(one, two):
    first, second = arrays(one), arrays(two)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


def records(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == split]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its directory, its result and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    printed = io.StringIO()
    result = run(small_config(), workdir, Console(file=printed))
    return workdir, result, printed.getvalue().strip().splitlines()


def test_a_run_and_what_it_leaves(finished, capsys):
    workdir, result, printed = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert {p.name for p in workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "report", "result.json",
    }  # fmt: skip
    assert printed[-1] == f"Report: {workdir / 'report' / 'index.html'}"
    assert (workdir / "report" / "index.html").exists()
    shapes = {"hidden0": (64, 32), "hidden1": (32, 32), "hidden2": (32, 32), "head": (32, 10)}
    counts = layer_counts(shapes, 0.2)
    stored = arrays(workdir)
    for layer, count in counts.items():
        mask = stored[f"state.opt_state.masks.{layer}.kernel"]
        assert mask.sum() == count
        assert not stored[f"state.params.{layer}.kernel"][~mask].any()
    kept = sum(counts.values())
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    biases = 32 * 3 + 10
    assert result["density"] == pytest.approx(kept / total)
    assert result["parameters"] == total + biases
    assert result["parameters_kept"] == kept + biases
    assert result["flops_dense"] == 2 * total
    assert result["flops"] == 2 * kept
    assert result["training_flops"] == 3 * 2 * kept * 40 * 64
    assert result["steps"] == 40
    assert result["test"]["selected"] == "last"
    assert result["test"]["accuracy"] > 0.2  # chance is 0.1, and the net is tiny
    assert -1 <= result["cka_within_stage"] <= 1
    assert result["cka_cross_stage"] is None  # an MLP has one stage
    assert 0.01 <= result["outlier_share"] < 0.2
    # Of the 80 % of pruned weights and few others.
    assert 0.8 <= result["epsilon_sparsity"]["0.0001"] <= result["epsilon_sparsity"]["0.01"] < 1
    training = records(workdir, "train")
    assert [r["step"] for r in training] == [10, 20, 30, 40]
    assert training[-1]["loss"] < training[0]["loss"]
    assert all(np.isfinite(r["penalty"]) for r in training)
    assert [r["step"] for r in records(workdir, "validation")] == [20, 40]
    assert [r["step"] for r in records(workdir, "layers")] == [20, 40]
    densities = records(workdir, "layers")[0]
    for layer, count in counts.items():
        assert densities[f"density/{layer}/kernel"] == count / int(np.prod(shapes[layer]))
    # The same command again says that the run is complete, and changes nothing.
    before = (workdir / "result.json").stat().st_mtime_ns
    assert run(small_config(), workdir) == result
    assert "This run is complete" in capsys.readouterr().out
    assert (workdir / "result.json").stat().st_mtime_ns == before


class UnsortedStages(nn.Module):
    """Sows its stages in another order than that of their names."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        self.sow("features", "stem", x)
        for _ in range(3):
            x = nn.relu(nn.Dense(16)(x))
            self.sow("features", "body", x)
        return nn.Dense(self.num_classes)(x)


def test_stages_keep_their_features_whatever_their_names(monkeypatch):
    monkeypatch.setattr(
        build_module, "create_model", lambda name, classes, **_: UnsortedStages(classes)
    )
    config = small_config(penalty__beta=0.0)
    config.model.options = ConfigDict()
    plan = prepare(config)
    evaluator, state = make_evaluator(plan), new_state(plan)
    assert evaluator.features == {"body": 3, "stem": 1}
    images = normalize(plan.dataset.validation_images[:128], plan.mean, plan.std)
    _, sown = plan.model.apply({"params": state.params}, images, train=False, mutable=["features"])
    features = sown["features"]
    expected = cka_penalty({"body": features["body"]}, reduction="mean")
    actual = evaluator.similarity(replicate(state, jax.local_devices()))
    assert actual["cka_within_stage"] == pytest.approx(float(expected), abs=1e-4)
    cross = [cka_penalty((features["stem"][0], x), reduction="mean") for x in features["body"]]
    assert actual["cka_cross_stage"] == pytest.approx(float(np.mean(cross)), abs=1e-4)


def test_the_config_says_when_the_penalty_is_on_and_of_which_kernel(tmp_path):
    logged = {}
    for kernel in ("linear", "rbf"):
        config = small_config(
            penalty__kernel=kernel,
            penalty__end=0.5,
            penalty__every=1,
            train__steps=4,
            train__log_every=1,
        )
        run(config, tmp_path / kernel)
        logged[kernel] = [r.get("penalty") for r in records(tmp_path / kernel, "train")]
    for values in logged.values():
        assert [value is None for value in values] == [False, False, True, True]
    assert abs(logged["linear"][0] - logged["rbf"][0]) > 1e-3


def test_a_model_without_features_runs_without_the_penalty(tmp_path):
    config = small_config(penalty__beta=0.0, train__steps=3)
    config.model.options.hidden = ()
    result = run(config, tmp_path / "run")
    assert result["cka_within_stage"] is None
    assert result["outlier_share"] is None


def test_a_result_means_finished(finished, tmp_path, monkeypatch):
    """A run that is killed as it writes its report has no result yet; run again, it has both."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "result.json").unlink()

    def killed(workdir, **parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result_module, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small_config(), tmp_path)
    assert not (tmp_path / "result.json").exists()
    again = run(small_config(), tmp_path)
    assert again["test"] == finished[1]["test"]
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "result.json").exists()


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


def masks_of(config):
    masks = get_masks(new_state(prepare(config)).opt_state)
    return {path: np.asarray(mask) for path, mask in leaf_paths(masks)}


@pytest.mark.parametrize("end", [0.75, 1.0])
def test_what_is_selected_has_the_density_that_was_asked_for(end, tmp_path):
    config = small_config(
        sparsity__rule="gmp", sparsity__update_every=5, sparsity__end=end, train__steps=20,
        eval__every=2, eval__select="best-validation", penalty__beta=0.0,
    )  # fmt: skip
    result = run(config, tmp_path)
    assert result["density"] == pytest.approx(0.2, abs=1e-3)
    assert result["test"]["step"] > (15 if end == 0.75 else 19)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "ntt"])
def test_pruning_before_training(method):
    config = small_config(sparsity__rule=method, penalty__beta=0.0)
    if method in ("synflow", "ntt"):
        config.sparsity.rounds = 5
    masks = masks_of(config)
    shapes = {"hidden0": (64, 32), "hidden1": (32, 32), "hidden2": (32, 32), "head": (32, 10)}
    assert {path: mask.shape for path, mask in masks.items()} == {
        f"{layer}/kernel": shape for layer, shape in shapes.items()
    }
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    # NTT's layers are uniform by default, the others rank all layers together.
    uniform = layer_counts(shapes, 0.2, "uniform")
    expected = sum(uniform.values()) if method == "ntt" else round(0.2 * total)
    assert sum(mask.sum() for mask in masks.values()) == expected


def test_layer_ratios_only():
    config = small_config(sparsity__rule="snip", penalty__beta=0.0)
    best = masks_of(config)
    config.sparsity.shuffle = True
    shuffled = masks_of(config)
    for path, mask in best.items():
        assert mask.sum() == shuffled[path].sum()
    assert (best["hidden0/kernel"] != shuffled["hidden0/kernel"]).any()


def test_a_run_that_resumes_has_its_masks_from_the_checkpoint(tmp_path, monkeypatch):
    config = small_config(sparsity__rule="snip", train__steps=2, penalty__beta=0.0)
    kept = run(config, tmp_path)["parameters_kept"]
    shutil.rmtree(tmp_path / "report")
    monkeypatch.setitem(methods.PRUNERS, "snip", None)
    assert run(config, tmp_path)["parameters_kept"] == kept


def test_load_variables_gives_the_tested_weights(finished):
    variables = load_variables(finished[0])
    stored = arrays(finished[0])
    head = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(head, stored["state.params.head.kernel"])
    logits = create_model("mlp", 10, hidden=(32, 32, 32)).apply(
        variables, np.zeros((2, 8, 8, 1), np.float32), train=False
    )
    assert logits.shape == (2, 10)
    with pytest.raises(ValueError, match="holds no run"):
        load_variables(finished[0] / "report")


def test_the_same_config_gives_the_same_run(finished, tmp_path):
    run(small_config(), tmp_path)
    assert_same_run(finished[0], tmp_path)


def test_shard_map_is_pmap(finished, tmp_path):
    run(small_config(train__parallel="shard_map"), tmp_path)
    one, other = arrays(finished[0]), arrays(tmp_path)
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], atol=1e-5, err_msg=path)


def start(workdir, *arguments):
    """Launch a run as a user does, with one device; its output goes to a file beside `workdir`."""
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "launch.py", f"--workdir={workdir}", *arguments],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def output_of(workdir):
    return workdir.with_suffix(".log").read_text()


def stop_in_training(process, workdir, number, step):
    """Send a signal once `step` has been logged, which is after the first checkpoint."""
    deadline = time.monotonic() + 600
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(0.01)
    assert process.poll() is None, output_of(workdir)
    process.send_signal(number)
    process.wait(60)


def check_resuming(tmp_path, number, step, *arguments):
    """A run that is stopped and started again ends bit for bit as one that never stopped."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    running = start(whole, *arguments)
    stop_in_training(start(stopped, *arguments), stopped, number, step)
    assert not (stopped / "result.json").exists()
    if number == signal.SIGTERM:
        stopped_at = re.search(r"Stopped at step (\d+) of", output_of(stopped))
    assert running.wait(900) == 0, output_of(whole)
    assert start(stopped, *arguments).wait(900) == 0, output_of(stopped)
    resumed = re.search(r"Resuming from step (\d+)", output_of(stopped))
    if number == signal.SIGTERM:
        assert resumed[1] == stopped_at[1]
    assert_same_run(whole, stopped)
    steps = [r["step"] for r in records(stopped, "train")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["kill", "term"],
)
def test_a_stopped_run_ends_bit_for_bit_as_an_uninterrupted_one(number, tmp_path):
    check_resuming(
        tmp_path, number, 400,
        "--config.train.steps=1500", "--config.checkpoint.every=70", "--config.train.log_every=20",
        "--config.model.options.hidden=(64,64,64)", "--config.eval.every=400",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not TFDS.exists(), reason="needs prepared TFDS sets beside the repository")
def test_resnet20_on_real_cifar10_resumes_bit_for_bit(tmp_path):
    check_resuming(
        tmp_path, signal.SIGKILL, 10,
        "--config=configs/paper/cifar10_resnet20_rst.py", f"--config.data.dir={TFDS}",
        "--config.train.steps=20", "--config.checkpoint.every=4", "--config.train.log_every=1",
    )  # fmt: skip


def test_a_signal_while_a_step_is_recorded_waits_for_the_next(tmp_path, monkeypatch):
    config = small_config(train__steps=6, train__log_every=1, penalty__beta=0.0)
    received = []

    @contextmanager
    def stop_signals():
        yield received

    log = Recorder._log
    monkeypatch.setattr(loop, "stop_signals", stop_signals)
    monkeypatch.setattr(
        Recorder, "_log", lambda self, done: (received.append(15), log(self, done))[1]
    )
    with pytest.raises(SystemExit, match="Stopped at step 2 of 6"):
        run(config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.close()


def test_selection_on_the_test_set_is_labeled(tmp_path):
    config = small_config(eval__select="best-test", eval__every=5, train__steps=20)
    result = run(config, tmp_path)
    best = max(records(tmp_path, "test-selection"), key=lambda r: r["accuracy"])
    assert result["test"]["selected"] == "best-test"
    assert result["test"]["step"] == best["step"]
    assert result["test"]["accuracy"] == pytest.approx(best["accuracy"], abs=1e-6)
    assert "Selected on the test set" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(("stored", "wanted"), [("dense", "rst"), ("rst", "dense")])
def test_a_checkpoint_without_the_masks_of_the_run_is_refused(stored, wanted, tmp_path):
    config = small_config(sparsity__rule=stored, train__steps=1, penalty__beta=0.0)
    plan = prepare(config)
    loop.train(plan, tmp_path, make_evaluator(plan), Console(quiet=True))
    config.sparsity.rule = wanted
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    place = "run" if stored == "dense" else "checkpoint"
    with pytest.raises(ConfigError, match=f"only the {place} has 'state.opt_state.masks"):
        run(config, tmp_path)


def test_the_report_is_not_needed_to_import_the_package():
    """Users of the penalty alone pay for jax alone: no Flax, Orbax, matplotlib or TFDS."""
    code = (
        "import sys, cka_sr_jax; "
        "print([m for m in ('flax', 'orbax', 'matplotlib', 'tensorflow_datasets', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
