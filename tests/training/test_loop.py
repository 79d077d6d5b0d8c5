"""Whole runs: what they leave behind, and that an interrupted one ends as if it never was."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.sparsity import layer_counts
from cka_sr_jax.training import ConfigError, build, input, loop
from cka_sr_jax.workflows import run
from tests.tfds_sets import streamed_arguments, write_photographs
from tests.training.runs import arrays, assert_same_run, records, small_config

pytestmark = pytest.mark.usefixtures("blank_images")
ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "tfds"


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
    assert list(result["effective_rank"]) == ["hidden.0", "hidden.1", "hidden.2"]
    assert all(1 < rank <= 32 for rank in result["effective_rank"].values())
    ranks = records(workdir, "ranks")
    assert [r["step"] for r in ranks] == [20, 40]
    assert {name: ranks[-1][name] for name in result["effective_rank"]} == result["effective_rank"]
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


@pytest.mark.slow
def test_a_run_in_bfloat16_stores_float32_and_learns(finished, tmp_path):
    _, in_float32, _ = finished
    result = run(small_config(model__dtype="bfloat16"), tmp_path / "run", Console(quiet=True))
    stored = arrays(tmp_path / "run").items()
    types = {str(array.dtype) for path, array in stored if path.startswith("state.")}
    assert types == {"float32", "int32", "bool"}
    assert 0 < abs(result["test"]["loss"] - in_float32["test"]["loss"]) < 0.1
    assert abs(result["test"]["accuracy"] - in_float32["test"]["accuracy"]) < 0.05


@pytest.mark.slow
def test_the_same_config_gives_the_same_run(finished, tmp_path):
    run(small_config(), tmp_path)
    assert_same_run(finished[0], tmp_path)


@pytest.mark.slow
def test_shard_map_is_pmap(finished, tmp_path):
    run(small_config(train__parallel="shard_map"), tmp_path)
    one, other = arrays(finished[0]), arrays(tmp_path)
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], atol=1e-5, err_msg=path)


def start(workdir, *arguments):
    """Launch a run as a user does, with one device; its output goes to a file beside `workdir`.

    It has a process group of its own.
    """
    xla_flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "launch.py", f"--workdir={workdir}", *arguments], cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": xla_flags}, stdout=log, stderr=subprocess.STDOUT,
            process_group=0,
        )  # fmt: skip


def output_of(workdir):
    return workdir.with_suffix(".log").read_text()


def stop_in_training(process, workdir, number, step):
    """Send its group a signal once `step` has been logged, which is after the first checkpoint."""
    deadline = time.monotonic() + 600
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(0.01)
    assert process.poll() is None, output_of(workdir)
    os.killpg(process.pid, number)  # as a terminal and a batch system do
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
    [signal.SIGKILL, signal.SIGTERM],
    ids=["kill", "term"],
)
@pytest.mark.slow
def test_a_stopped_run_ends_bit_for_bit_as_an_uninterrupted_one(number, tmp_path):
    check_resuming(
        tmp_path, number, 400,
        "--config.train.steps=1500", "--config.checkpoint.every=70", "--config.train.log_every=20",
        "--config.model.options.hidden=(64,64,64)", "--config.eval.every=400",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_streamed_run_that_is_stopped_with_its_workers_loses_nothing(number, tmp_path):
    write_photographs(tmp_path / "sets" / "tiny" / "1.0.0", train=57, test=9)
    check_resuming(
        tmp_path, number, 100,
        "--config.train.steps=300", "--config.checkpoint.every=70", "--config.train.log_every=20",
        "--config.eval.every=150", "--config.data.workers=2",
        *streamed_arguments(tmp_path / "sets"),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not TFDS.exists(), reason="needs prepared TFDS sets beside the repository")
def test_resnet20_on_real_cifar10_resumes_bit_for_bit(tmp_path):
    check_resuming(
        tmp_path, signal.SIGKILL, 10,
        "--config=configs/paper/cifar10_resnet20_rst.py", f"--config.data.dir={TFDS}",
        "--config.train.steps=20", "--config.checkpoint.every=4", "--config.train.log_every=1",
    )  # fmt: skip


def test_the_report_is_not_needed_to_import_the_package():
    """Users of the penalty alone pay for jax alone: no Flax, Orbax, matplotlib or TFDS."""
    code = (
        "import sys, cka_sr_jax; "
        "print([m for m in ('flax', 'orbax', 'matplotlib', 'tensorflow_datasets', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_does_not_train_in_the_directory_of_another(finished, tmp_path):
    config = small_config()
    config.optimizer.learning_rate = 0.5
    before = (finished[0] / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate is 0.1 there and 0.5 now"):
        loop.run(loop.prepare(config), finished[0], Console(quiet=True))
    assert (finished[0] / "config.json").read_text() == before
    (tmp_path / "a.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files but no run"):
        loop.run(loop.prepare(config), tmp_path, Console(quiet=True))


def test_a_run_that_diverges_stops_and_says_where(tmp_path, capsys):
    """The second step's numbers overflow."""
    config = small_config(
        optimizer__learning_rate=1e38, optimizer__schedule="constant", checkpoint__every=1
    )
    result = run(config, tmp_path)
    diverged = result["diverged"]
    assert diverged["step"] == 2  # the first one's weights are near 1e38, and finite
    assert np.isfinite(diverged["before"]["loss"])
    assert diverged["checkpoint"] == 1
    assert all(np.isfinite(value).all() for value in arrays(tmp_path).values())
    out = capsys.readouterr().out
    assert f"This run diverged: at step {diverged['step']} its loss, a gradient or" in out
    assert result["test"]["loss"] is None
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Diverged at step" in page
    assert "not computed" not in page
    run(config, tmp_path)  # it is complete, and starts no second time
    assert "This run is complete" in capsys.readouterr().out


RIGL = {"sparsity__rule": "rigl", "sparsity__update_every": 7}


def test_a_gpu_has_a_program_for_steps_that_change_no_mask(monkeypatch):
    plan = loop.prepare(small_config(**RIGL))
    alike = loop.step_functions(plan)
    assert alike(7) is alike(8)
    monkeypatch.setattr(loop, "branches_wait", lambda devices: True)
    functions = loop.step_functions(plan)
    assert functions(7) is functions(14) is not functions(8)
    assert functions(8) is functions(9)
    # A change that is skipped with its step waits for the next one.
    skips = loop.step_functions(loop.prepare(small_config(**RIGL, train__not_finite="skip")))
    assert skips(7) is skips(8)


@pytest.mark.slow
def test_a_gpus_two_programs_are_one_run(tmp_path, monkeypatch):
    run(small_config(**RIGL), tmp_path / "one", Console(quiet=True))
    monkeypatch.setattr(loop, "branches_wait", lambda devices: True)
    run(small_config(**RIGL), tmp_path / "two", Console(quiet=True))
    two = arrays(tmp_path / "two")
    for path, value in arrays(tmp_path / "one").items():  # XLA rounds the two programs differently
        tolerance = 1e-5 if value.dtype == np.float32 else 0
        np.testing.assert_allclose(value, two[path], rtol=0, atol=tolerance, err_msg=path)


def test_layers_that_keep_no_weight_are_named(capsys):
    plan = loop.prepare(small_config(sparsity__density=0.0005, sparsity__exact=False))
    loop.describe(plan, build.new_state(plan), Console(soft_wrap=True))
    out = capsys.readouterr().out
    assert "keeps no weight at density 0.0005, so nothing passes; raise sparsity.density" in out
    assert "hidden1/kernel" in out
    assert "bias" not in out


@pytest.mark.slow
def test_what_a_run_has_saved_before_it_diverges_is_finite(tmp_path, monkeypatch):
    """The learning rate rises to what overflows after the first checkpoint."""
    schedule = lambda step: jnp.where(step < 20, 0.1, 1e38)  # noqa: E731
    monkeypatch.setattr(build, "create_schedule", lambda optimizer, steps: schedule)
    result = run(small_config(), tmp_path)
    assert 20 < result["diverged"]["step"] <= 23
    assert result["diverged"]["checkpoint"] == 15
    assert all(np.isfinite(value).all() for value in arrays(tmp_path).values())
    assert records(tmp_path, "train")[-1]["step"] == 20
    assert records(tmp_path, "train")[-1]["loss"] == pytest.approx(
        result["diverged"]["before"]["loss"], abs=3
    )


def test_steps_that_are_not_finite_can_be_skipped(tmp_path, monkeypatch):
    """One batch of infinite images: without its step all else is as if it had not been."""
    augment = input.augment

    def spoil(key, indices, images, **options):
        images = augment(key, indices, images, **options).astype(jnp.float32)
        return jnp.where(jax.random.bernoulli(key, 0.2), jnp.inf, images)  # a key for each step

    monkeypatch.setattr(input, "augment", spoil)
    result = run(small_config(train__not_finite="skip", optimizer__learning_rate=0.1), tmp_path)
    skipped = sum(r.get("skipped_steps", 0) for r in records(tmp_path, "train"))
    assert 1 <= skipped <= 20
    assert "diverged" not in result
    assert result["test"]["accuracy"] > 0.2
    assert all(np.isfinite(value).all() for value in arrays(tmp_path).values())
