"""Runs trained together are the runs trained one by one, also when they are stopped midway."""

import io
import json
import shutil
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.sweeps import GridOptions, grid_points, replicas, run_grid, runner
from cka_sr_jax.sweeps.replicas import replica_groups, train_together
from cka_sr_jax.training import Checkpoints, default_config, loop, recorder
from tests.report.fake_wandb import install

pytestmark = pytest.mark.usefixtures("blank_images")


def small_grid():
    config = default_config()
    config.model.options.hidden = (16, 16)
    config.train.steps = 6
    config.train.batch_size = 64
    config.train.log_every = 3
    config.eval.select = "best-validation"
    config.eval.every = 3
    config.checkpoint.every = 2
    config.sparsity.rule = "rigl"
    config.sparsity.density = 0.3
    config.sparsity.update_every = 2
    config.grid = ConfigDict({"penalty": {"beta": (0.0, 0.1)}})
    config.seeds = (3, 4)
    return config


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True)


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    """One of the fake devices compiles sooner than four."""
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        for name in ("devices", "local_devices"):
            patch.setattr(jax, name, lambda: device)
        yield


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    states = run_grid(small_grid(), workdir, GridOptions(replicas=4), quiet())
    assert all(state.startswith("finished: test accuracy") for state in states.values())
    return workdir


def stored(run):
    checkpoints = Checkpoints(run)
    arrays = checkpoints.arrays()
    checkpoints.close()
    return arrays


def check_alike(one, other, rtol=1e-7):
    arrays = stored(one), stored(other)
    assert arrays[0].keys() == arrays[1].keys()
    for path, array in arrays[0].items():
        if path != "seconds":
            np.testing.assert_allclose(array, arrays[1][path], rtol, atol=1e-5, err_msg=path)
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["test"] == pytest.approx(results[1]["test"], abs=1e-5)
    assert results[0]["training_flops"] == results[1]["training_flops"]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 3])
def test_together_is_one_by_one(together, tmp_path, index):
    name = list(grid_points(small_grid()))[index]
    run_grid(small_grid(), tmp_path, GridOptions(index=index), quiet())
    check_alike(together / name, tmp_path / name)
    lines = [(d / name / "metrics.jsonl").read_text().splitlines() for d in (together, tmp_path)]
    for a, b in zip(*(map(json.loads, found) for found in lines), strict=True):
        for record in (a, b):
            record.pop("steps_per_second", None)
            if record.get("penalty") is not None and index == 0:
                del record["penalty"]  # it was computed, and had no weight
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["snip", "dst"])
def test_masks_found_before_or_learned_and_convolutions(tmp_path, rule):
    """With BatchNorm, augmentation and three seeds."""
    config = small_grid()
    config.model.name, config.model.options = "resnet14", ConfigDict({"width": 2})
    config.train.batch_size = 16
    config.train.steps = 2  # after which rounding errors grow fast in so narrow a network
    config.data.flip, config.data.pad = True, 1
    config.sparsity.rule, config.sparsity.update_every = rule, None
    config.sparsity.alpha = 1e-3 if rule == "dst" else None
    config.eval.select = "last"
    config.grid.penalty.beta = (0.1,)
    config.seeds = (3, 4, 5)
    run_grid(config, tmp_path / "together", GridOptions(replicas=3), quiet())
    name = list(grid_points(config))[2]
    run_grid(config, tmp_path / "alone", GridOptions(index=2), quiet())
    check_alike(tmp_path / "together" / name, tmp_path / "alone" / name, rtol=1e-4)


@pytest.mark.slow
def test_a_group_that_was_stopped_goes_on(together, tmp_path, monkeypatch):
    """The signal comes while a run of the group is recorded: all stop at the same step."""
    received = []

    @contextmanager
    def stop_signals(console):
        yield received

    average = recorder.mean_metrics
    monkeypatch.setattr(replicas, "stop_signals", stop_signals)
    monkeypatch.setattr(
        recorder, "mean_metrics", lambda steps: (received.append(15), average(steps))[1]
    )
    with pytest.raises(SystemExit, match="Stopped at step 4 of 6"):
        run_grid(small_grid(), tmp_path, GridOptions(replicas=4), quiet())
    monkeypatch.undo()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    points = grid_points(small_grid())
    assert replica_groups(points, tmp_path, 4) == [list(points)]
    run_grid(small_grid(), tmp_path, GridOptions(replicas=4), quiet())
    name = list(points)[2]
    check_alike(together / name, tmp_path / name)


@pytest.mark.slow
def test_runs_of_different_steps_do_not_train_together(together, tmp_path):
    points = grid_points(small_grid())
    names = list(points)[:2]
    shutil.copytree(together / names[0], tmp_path / names[0])
    (tmp_path / names[0] / "result.json").unlink()
    assert replica_groups({name: points[name] for name in names}, tmp_path, 4) == [
        [names[0]],
        [names[1]],
    ]
    with pytest.raises(ValueError, match=r"checkpoints are of different steps: \[0, 6\]"):
        train_together({tmp_path / n: loop.prepare(points[n]) for n in names}, quiet())


def test_groups_differ_in_seed_and_beta_alone(tmp_path):
    config = small_grid()
    config.grid.sparsity = ConfigDict({"density": (0.3, 0.2)})
    points = grid_points(config)
    groups = replica_groups(points, tmp_path, 3)
    assert [len(group) for group in groups] == [3, 1, 3, 1]
    assert sorted(name for group in groups for name in group) == sorted(points)
    for group in groups:
        assert len({points[name].sparsity.density for name in group}) == 1


@pytest.mark.slow
def test_what_does_not_train_together_trains_alone(tmp_path, monkeypatch):
    def out_of_memory(plans, console):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(runner, "train_together", out_of_memory)
    monkeypatch.setattr(runner, "run_point", lambda config, folder, retry, plan: "finished")
    console = quiet()
    states = run_grid(small_grid(), tmp_path, GridOptions(replicas=4), console)
    assert set(states.values()) == {"finished"}
    assert "Not together: out of memory" in console.file.getvalue()


@pytest.mark.slow
def test_runs_that_train_together_are_runs_of_wandb_each(tmp_path, monkeypatch):
    """Open side by side while they train; each is resumed for its result."""
    wandb, config = install(monkeypatch), small_grid()
    config.report.wandb = "sparse"
    run_grid(config, tmp_path, GridOptions(replicas=4), quiet())
    together, after = wandb.runs[:4], wandb.runs[4:]
    assert [run.options["id"] for run in together] == [run.options["id"] for run in after]
    assert len({run.options["id"] for run in together}) == 4
    assert all("train/loss" in run.logged[6] for run in together)
    assert all(run.summary["test"]["accuracy"] > 0 for run in after)
    assert {run.exit_code for run in wandb.runs} == {0}
