"""Grids: which runs they are, that finished ones are not repeated, and what a failure leaves."""

import io
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.experiments import grid
from cka_sr_jax.experiments.grid import grid_points, run_grid
from cka_sr_jax.training import ConfigError, default_config

ROOT = Path(__file__).parents[2]


def small_grid(**axes):
    config = default_config()
    config.model.options.hidden = (8, 8)
    config.train.steps = 2
    config.grid = ConfigDict(
        {"cka": {"beta": (0.0, 0.01)}, "sparsity": {"density": (0.5,)}, **axes}
    )
    config.seeds = (3, 4)
    return config


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True)


def test_points_are_all_combinations_with_every_seed():
    points = grid_points(small_grid())
    assert list(points) == [
        f"beta={beta},density=0.5,seed={seed}" for beta in (0.0, 0.01) for seed in (3, 4)
    ]
    config = points["beta=0.01,density=0.5,seed=4"]
    assert (config.cka.beta, config.sparsity.density, config.seed) == (0.01, 0.5, 4)
    assert not config.grid
    assert not config.seeds
    # Fields that end alike keep their whole names.
    other = small_grid(eval={"every": (1, 2)}, cka={"every": (3,)})
    assert next(iter(grid_points(other))) == "cka.every=3,eval.every=1,density=0.5,seed=3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cka": {"bata": (1.0,)}}, "Unknown config field in the grid: 'cka.bata': did you mean"),
        ({"cka": {"beta": 0.1}}, r"grid.cka.beta=0.1 is no tuple of values: write for example"),
        ({"cka": {"beta": ("x",)}}, "the grid's point .* is wrong"),
        ({"cka": {"beta": (-1.0,)}}, "cka.beta=-1.0 is too small"),
        ({"sparsity": {"rule": ("rigle",)}}, "Unknown sparsity.rule 'rigle'"),
        ({"seeds": (1, 2)}, "Unknown config field in the grid: 'seeds': did you mean 'seed'"),
        ({"seed": (1, 2)}, "grid.seed and seeds both say which seeds to run"),
        ({"cka": {"beta": (0.0, 1e-3, 0)}}, r"grid.cka.beta=.* has a value twice"),
        ({"model": {"options": {"hiden": ((8,), (9,))}}}, "Unknown option of mlp 'hiden'"),
        ({"data": {"name": ("mnist",)}}, "data.dir is empty"),
        (
            {"sparsity": {"rule": ("rigl", "rst"), "update_every": (1,)}},
            "sparsity.update_every=1 is no option of sparsity.rule 'rst'",
        ),
    ],
)
def test_a_wrong_grid_is_one_sentence_before_anything_runs(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_grid(small_grid(**change), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_other_refusals(tmp_path):
    with pytest.raises(ConfigError, match="this config has no grid"):
        run_grid(default_config(), tmp_path)
    with pytest.raises(ConfigError, match=r"--grid_index=4 is outside this grid of 4 points"):
        run_grid(small_grid(), tmp_path, index=4)
    with pytest.raises(ConfigError, match="--jobs=0 is too small"):
        run_grid(small_grid(), tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="--jobs and --replicas are two ways"):
        run_grid(small_grid(), tmp_path, jobs=2, replicas=2)


def test_runs_once_and_a_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    calls = []

    def fake_run(config, workdir, console):
        calls.append(workdir.name)
        if config.cka.beta and len(calls) < 5:
            raise RuntimeError("out of\nluck")
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict()))
        result = {"test": {"accuracy": 0.5}}
        (workdir / "result.json").write_text(json.dumps(result))
        return result

    fake = SimpleNamespace(run=fake_run, prepare=lambda config, workdir: None)
    monkeypatch.setattr(grid, "experiment_of", lambda config: fake)
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert [state.split(":")[0] for state in states.values()] == ["finished"] * 2 + ["failed"] * 2
    assert "out of luck" in list(states.values())[2]
    # Again: nothing runs, and the failures are still reported.
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert len(calls) == 4
    assert set(states.values()) == {"finished before", "failed before: luck"}
    # On request the failed ones run, and only they.
    states = run_grid(small_grid(), tmp_path, retry=True, console=quiet())
    assert len(calls) == 6
    assert [state.split(":")[0] for state in states.values()][2:] == ["finished"] * 2
    # More values extend the grid.
    states = run_grid(small_grid(sparsity={"density": (0.5, 0.6)}), tmp_path, console=quiet())
    assert len(calls) == 10
    # One point alone.
    assert list(run_grid(small_grid(), tmp_path, index=1, console=quiet())) == [
        "beta=0.0,density=0.5,seed=4"
    ]


def hold(path, ready, release):
    with grid._lock(path) as free:
        assert free
        ready.set()
        release.wait(60)


def test_a_point_is_run_by_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    name = "beta=0.0,density=0.5,seed=3"
    other = context.Process(target=hold, args=(tmp_path / ".locks" / name, ready, release))
    other.start()
    assert ready.wait(60)
    assert run_grid(small_grid(), tmp_path, index=0, console=quiet()) == {name: "running elsewhere"}
    release.set()
    other.join(60)


@pytest.mark.slow
def test_a_grid_in_two_processes_from_the_command_line(tmp_path):
    config = tmp_path / "two.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "from cka_sr_jax.training import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.options.hidden = (8, 8)\n"
        "    config.train.steps = 3\n"
        "    config.seeds = (0, 1)\n"
        "    return config\n"
    )

    def launch(*arguments):
        return subprocess.run(
            [sys.executable, "launch.py", f"--config={config}", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    refused = launch("--workdir", str(tmp_path / "none"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: This config is a grid of runs: add --grid")
    done = launch("--grid", "--jobs=2", "--workdir", str(tmp_path / "grid"))
    assert done.returncode == 0, done.stderr
    assert "2 finished" in done.stdout
    for seed in (0, 1):
        assert (tmp_path / "grid" / f"seed={seed}" / "result.json").exists()


def test_a_mistake_that_only_a_run_finds_ends_the_grid(tmp_path, monkeypatch):
    def refuse(config, workdir, console):
        raise ConfigError("this point cannot work.")

    fake = SimpleNamespace(run=refuse, prepare=lambda config, workdir: None)
    monkeypatch.setattr(grid, "experiment_of", lambda config: fake)
    with pytest.raises(ConfigError, match="this point cannot work"):
        run_grid(small_grid(), tmp_path, console=quiet())
    assert not list(tmp_path.glob("*/failed.txt"))
