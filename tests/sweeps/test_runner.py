"""Grids: finished points are not repeated, what a failure leaves, and how a grid is stopped."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from cka_sr_jax.sweeps import GridOptions, grid_points, run_grid, runner
from cka_sr_jax.training import ConfigError, loop
from cka_sr_jax.training.locks import claim
from tests.sweeps.grids import quiet, small_grid, two_points, write_run

pytestmark = pytest.mark.usefixtures("blank_images")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def workflow(monkeypatch):
    """Replace what a point runs: `workflow(run)`, with `run(config, folder) -> result`."""

    def replace(run):
        fake = SimpleNamespace(
            prepare=lambda config: config,
            run=lambda plan, folder, console: run(plan, folder),
        )
        monkeypatch.setattr(runner, "workflow_of", lambda config: fake)

    return replace


@pytest.fixture
def one_device(monkeypatch):
    """Show one device to this process and to those that it starts."""
    device = jax.devices()[:1]  # this process's devices are made here, before the flags change
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "local_devices", lambda: device)


def begin(states):
    """The states without their details."""
    return [state.split(":")[0] for state in states.values()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": {"beta": (-1.0,)}}, "penalty.beta=-1.0: expected"),
        ({"model": {"options": {"hiden": ((8,), (9,))}}}, "Unknown option of mlp 'hiden'"),
        ({"data": {"name": ("mnist",)}}, "data.dir is empty"),
    ],
)
def test_a_wrong_grid_is_one_sentence_before_anything_runs(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_grid(small_grid(**change), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_runs_once_and_a_failure_does_not_stop_the_others(tmp_path, workflow):
    calls = []

    def run(config, folder):
        calls.append(folder.name)
        if config.penalty.beta and len(calls) < 5:
            raise RuntimeError("out of\nluck")
        result = {"test": {"accuracy": 0.5}}
        write_run(folder, config, result)
        return result

    workflow(run)
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert list(states.values())[1:3] == ["finished: test accuracy 0.5000", "failed: out of luck"]
    assert begin(states) == ["finished"] * 2 + ["failed"] * 2
    # Again: nothing runs, and the failures are still reported.
    console = quiet()
    states = run_grid(small_grid(), tmp_path, console=console)
    assert len(calls) == 4
    assert set(states.values()) == {"finished before", "failed before: out of luck"}
    assert "Add --retry" in console.file.getvalue()
    text = next(tmp_path.glob("*/failed.txt")).read_text()
    assert text.startswith("out of luck\n\nTraceback ")
    # On request the failed ones run, and only they.
    states = run_grid(small_grid(), tmp_path, GridOptions(retry=True), quiet())
    assert len(calls) == 6
    assert begin(states) == ["finished before"] * 2 + ["finished"] * 2
    # More values extend the grid.
    run_grid(small_grid(sparsity={"density": (0.5, 0.6)}), tmp_path, console=quiet())
    assert len(calls) == 10
    # One point alone.
    assert run_grid(small_grid(), tmp_path, GridOptions(index=1), quiet()) == {
        "beta=0.0,density=0.5,seed=4": "finished before"
    }


def test_a_point_is_prepared_once(tmp_path, monkeypatch):
    """Also where points train together, and are evaluated and reported one by one."""
    prepared, together = [], []

    def prepare(config):
        prepared.append(config)
        return config

    def run(plan, folder, console):
        write_run(folder, plan, {})
        return {}

    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(loop, "run", run)
    run_grid(small_grid(), tmp_path / "in turn", console=quiet())
    points = list(grid_points(small_grid()).values())
    assert prepared == points
    prepared.clear()
    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: device)
    monkeypatch.setattr(runner, "train_together", lambda plans, console: together.append(plans))
    run_grid(small_grid(), tmp_path / "together", GridOptions(replicas=3), quiet())
    assert prepared == points
    assert [list(plans.values()) for plans in together] == [points[:3]]


def test_says_how_long_the_rest_takes(tmp_path, workflow):
    """Where points have failed before, and another process finishes one meanwhile."""
    config = small_grid()
    points = grid_points(config)
    names = list(points)
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[0] / "failed.txt").write_text("out of luck\n")

    def run(config, folder):
        write_run(folder, config, {})
        write_run(tmp_path / names[3], points[names[3]], {})
        return {}

    workflow(run)
    console = quiet()
    run_grid(config, tmp_path, console=console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == f"[1/4] {names[0]}: failed before: out of luck"
    assert re.fullmatch(rf"\[2/4\] {re.escape(names[1])}: finished, about \d+ s left", lines[1])
    assert lines[2:4] == [f"[3/4] {names[2]}: finished", f"[4/4] {names[3]}: finished before"]
    assert lines[4] == "1 failed before, 2 finished, 1 finished before"


def hold(folder, ready, release):
    with claim(folder) as claimed:
        assert claimed
        ready.set()
        release.wait(60)


def test_a_point_is_run_by_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    name = "beta=0.0,density=0.5,seed=3"
    other = context.Process(target=hold, args=(tmp_path / name, ready, release))
    other.start()
    assert ready.wait(120)
    console = quiet()
    states = run_grid(small_grid(), tmp_path, GridOptions(index=0), console)
    assert states == {name: "running elsewhere"}
    assert "run this command again" in console.file.getvalue()
    release.set()
    other.join(60)


def test_what_another_process_has_finished_meanwhile_is_finished(tmp_path, workflow):
    """It was running when this process came to it, and has a result when this one ends."""
    points = grid_points(two_points())
    first, second = points

    def run(config, folder):
        write_run(tmp_path / first, points[first], {})
        return {}

    workflow(run)
    console = quiet()
    with claim(tmp_path / first):
        states = run_grid(two_points(), tmp_path, console=console)
    assert states == {first: "finished before", second: "finished"}
    assert f"{first}: running elsewhere" in console.file.getvalue()
    assert "run this command again" not in console.file.getvalue()


def test_a_mistake_that_only_a_run_finds_is_that_points_failure(tmp_path, workflow):
    def run(config, folder):
        if config.penalty.beta:
            raise ConfigError("this point cannot work.")
        return {}

    workflow(run)
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert list(states.values()) == ["finished"] * 2 + ["failed: this point cannot work."] * 2
    assert len(list(tmp_path.glob("*/failed.txt"))) == 2
    # Their directories hold nothing else, and do not stop the grid.
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert begin(states) == ["finished"] * 2 + ["failed before"] * 2


def test_every_directory_is_checked_before_anything_runs(tmp_path):
    config = small_grid()
    folder = tmp_path / "beta=0.01,density=0.5,seed=4"
    write_run(folder, grid_points(config)[folder.name], {})
    config.train.steps = 3
    with pytest.raises(ConfigError, match=r"belongs to another config: train.steps is 2"):
        run_grid(config, tmp_path, console=quiet())
    (folder / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"seed=4/config.json is damaged: delete it if"):
        run_grid(small_grid(), tmp_path, console=quiet())
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("index", [None, 0])
@pytest.mark.parametrize("left", ["config.json", "result.json"])
def test_a_grid_refuses_the_directory_of_a_run(left, index, tmp_path):
    (tmp_path / left).write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a run, and a grid's points .*: name another dir"):
        run_grid(small_grid(), tmp_path, GridOptions(index=index), quiet())
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_a_finished_point_is_finished_whatever_is_logged(tmp_path):
    config = small_grid()
    for name, point in grid_points(config).items():
        write_run(tmp_path / name, point, {})
    config.train.log_every, config.data.cache_dir = 7, "elsewhere"
    states = run_grid(config, tmp_path, console=quiet())
    assert set(states.values()) == {"finished before"}


@pytest.mark.slow
def test_a_point_that_cannot_run_fails_and_the_others_go_on(tmp_path):
    config = two_points()
    config.grid = ConfigDict({"model": {"options": {"hidden": ((8,), (8, 8))}}})
    config.seeds = (3,)
    states = run_grid(config, tmp_path, console=quiet())
    assert states["hidden=(8,),seed=3"].startswith("failed: no pair of features to penalize")
    assert states["hidden=(8,8),seed=3"].startswith("finished")
    # Also if the one that can run has failed before and is tried again.
    workdir = tmp_path / "again"
    failed = workdir / "hidden=(8,8),seed=3" / "failed.txt"
    failed.parent.mkdir(parents=True)
    failed.write_text("too little memory\n")
    states = run_grid(config, workdir, GridOptions(retry=True), quiet())
    assert states["hidden=(8,),seed=3"].startswith("failed: no pair of features to penalize")
    assert states["hidden=(8,8),seed=3"].startswith("finished")


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (((8,), (9,)), r"^no pair of features"),
        (((8,), ("x",)), r"^no point can run; hidden=\(8,\),seed=3: no pair of features"),
    ],
)
def test_if_no_point_can_run_none_is_begun(tmp_path, hidden, message):
    config = two_points()
    config.grid = ConfigDict({"model": {"options": {"hidden": hidden}}})
    with pytest.raises(ConfigError, match=message):
        run_grid(config, tmp_path / "grid", console=quiet())
    assert not (tmp_path / "grid").exists()


def die_at_seed_3(config, folder, retry, keeps_programs):
    if config.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return "finished"


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_process_that_dies_is_a_failure_and_the_others_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_run_in_process", die_at_seed_3)
        states = run_grid(two_points(), tmp_path, GridOptions(jobs=2), quiet())
    name = "beta=0.0,seed=3"
    assert states == {name: "failed: killed by signal 9", "beta=0.0,seed=4": "finished"}
    again = run_grid(two_points(), tmp_path, GridOptions(index=0), quiet())
    assert again == {name: "failed before: killed by signal 9"}


@pytest.mark.usefixtures("one_device")
def test_with_several_processes_a_shared_mistake_ends_the_grid(tmp_path):
    config = two_points()
    config.grid = ConfigDict({"data": {"name": ("mnist",)}})
    with pytest.raises(ConfigError, match=r"data.dir is empty"):
        run_grid(config, tmp_path, GridOptions(jobs=2), quiet())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_do_not_share_several_devices(tmp_path):
    refused = r"each of the --jobs=2 processes would take all 4 devices"
    with pytest.raises(ConfigError, match=refused):
        run_grid(two_points(), tmp_path, GridOptions(jobs=2), quiet())
    # If nothing is left to run, there is nothing to share.
    for name, point in grid_points(two_points()).items():
        write_run(tmp_path / name, point, {})
    states = run_grid(two_points(), tmp_path, GridOptions(jobs=2), quiet())
    assert set(states.values()) == {"finished before"}
    for name in grid_points(two_points()):
        (tmp_path / name / "result.json").unlink()
        (tmp_path / name / "failed.txt").write_text("too little memory\n")
    with pytest.raises(ConfigError, match=refused):
        run_grid(two_points(), tmp_path, GridOptions(jobs=2, retry=True), quiet())


def launch(config, *arguments):
    """The command line in a process of its own, on one device."""
    return subprocess.Popen(
        [sys.executable, "launch.py", f"--config={config}", *arguments],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def seeds_file(tmp_path):
    """A config with three seeds, each of some seconds of training."""
    path = tmp_path / "seeds.py"
    path.write_text(
        "from cka_sr_jax.training import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.options.hidden = (8, 8)\n"
        "    config.train.steps = 2000\n"
        "    config.train.log_every = 20\n"
        "    config.eval.every = 500\n"
        "    config.checkpoint.every = 100\n"
        "    config.seeds = (0, 1, 2)\n"
        "    return config\n"
    )
    return path


@pytest.mark.slow
def test_a_grid_in_two_processes_from_the_command_line(seeds_file, tmp_path):
    refused = launch(seeds_file, "--workdir", str(tmp_path / "none"))
    assert refused.communicate()[1].startswith("error: This config is a grid of runs: add --grid")
    assert refused.returncode == 2
    command = (seeds_file, "--grid", "--jobs=2", f"--workdir={tmp_path / 'grid'}")
    done = launch(*command, "--config.train.steps=3")
    printed, errors = done.communicate()
    assert done.returncode == 0, errors
    assert "3 finished" in printed
    for seed in (0, 1, 2):
        assert (tmp_path / "grid" / f"seed={seed}" / "result.json").exists()


def logged(workdir, seed):
    """The steps of training that a point has logged."""
    path = workdir / f"seed={seed}" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [r["step"] for r in map(json.loads, lines) if r["split"] == "train"]


def stop_when(process, number, condition):
    """Send the signal once the condition holds; what was printed on stderr."""
    deadline = time.monotonic() + 600
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    return process.communicate(timeout=300)[1]


def check_rerun(workdir, *command):
    """All is finished in the end; what was finished before is as it was."""
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/result.json")}
    done = launch(*command)
    printed, errors = done.communicate()
    assert done.returncode == 0, errors
    assert printed.count("finished before") == len(before) + (1 if before else 0)  # in the sum too
    assert "elsewhere" not in printed
    for path, changed in before.items():
        assert path.stat().st_mtime_ns == changed
    for seed in (0, 1, 2):
        assert (workdir / f"seed={seed}" / "result.json").exists()
        assert logged(workdir, seed) == list(range(20, 2001, 20))


@pytest.mark.slow
def test_a_killed_grid_goes_on(seeds_file, tmp_path):
    workdir = tmp_path / "grid"
    command = (seeds_file, "--grid", f"--workdir={workdir}")
    stop_when(launch(*command), signal.SIGKILL, lambda: max(logged(workdir, 1), default=0) > 300)
    assert len(list(workdir.glob("*/result.json"))) == 1
    check_rerun(workdir, *command)


@pytest.mark.slow
def test_a_grid_in_two_processes_that_is_asked_to_end_saves_them(seeds_file, tmp_path):
    workdir = tmp_path / "grid"
    command = (seeds_file, "--grid", "--jobs=2", f"--workdir={workdir}")
    process = launch(*command)
    begun = lambda: logged(workdir, 0) and logged(workdir, 1)  # noqa: E731
    errors = stop_when(process, signal.SIGTERM, begun)
    assert process.returncode not in (0, -signal.SIGTERM)
    assert errors == "Stopped; the same command goes on from what was saved.\n"
    assert not (workdir / "seed=2").exists()
    assert not list(workdir.glob("*/result.json"))
    assert not list(workdir.glob("*/failed.txt"))
    assert len(list(workdir.glob("*/checkpoints/*"))) >= 2
    check_rerun(workdir, *command)


@pytest.mark.slow
def test_two_processes_whose_parent_is_killed_save_and_end(seeds_file, tmp_path):
    workdir = tmp_path / "grid"
    command = (seeds_file, "--grid", "--jobs=2", f"--workdir={workdir}")
    begun = lambda: logged(workdir, 0) and logged(workdir, 1)  # noqa: E731
    stop_when(launch(*command), signal.SIGKILL, begun)  # and returns once the two have ended too
    assert not list(workdir.glob("*/result.json"))
    assert len(list(workdir.glob("*/checkpoints/*"))) >= 2
    check_rerun(workdir, *command)
