"""Grids: which runs they are, that finished ones are not repeated, and what a failure leaves."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.sweeps import runner as grid
from cka_sr_jax.sweeps.runner import grid_points, run_grid
from cka_sr_jax.training import ConfigError, default_config

ROOT = Path(__file__).parents[2]


def small_grid(**axes):
    config = default_config()
    config.model.options.hidden = (8, 8)
    config.train.steps = 2
    config.grid = ConfigDict(
        {"penalty": {"beta": (0.0, 0.01)}, "sparsity": {"density": (0.5,)}, **axes}
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
    assert (config.penalty.beta, config.sparsity.density, config.seed) == (0.01, 0.5, 4)
    assert not config.grid
    assert not config.seeds
    # 0 is 0.0 in a field of floats.
    assert list(grid_points(small_grid(cka={"beta": (0, 0.01)}))) == list(points)
    # Fields that end alike keep their whole names.
    other = small_grid(eval={"every": (1, 2)}, cka={"every": (3,)})
    assert next(iter(grid_points(other))) == "penalty.every=3,eval.every=1,density=0.5,seed=3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"penalty": {"bata": (1.0,)}},
            "Unknown config field in the grid: 'penalty.bata': did you mean",
        ),
        (
            {"penalty": {"beta": 0.1}},
            r"grid.penalty.beta=0.1 is no tuple of values: write for example",
        ),
        ({"penalty": {"beta": ("x",)}}, "the grid's point .* is wrong"),
        ({"penalty": {"beta": (-1.0,)}}, "penalty.beta=-1.0 is too small"),
        ({"sparsity": {"rule": ("rigle",)}}, "Unknown sparsity.rule 'rigle'"),
        ({"seeds": (1, 2)}, "Unknown config field in the grid: 'seeds': did you mean 'seed'"),
        ({"seed": (1, 2)}, "grid.seed and seeds both say which seeds to run"),
        ({"penalty": {"beta": (0.0, 1e-3, 0)}}, r"grid.penalty.beta=.* has a value twice"),
        (
            {"sparsity": {"exclude": (("a/b",), ("a_b",))}},
            r"two points of this grid would both be called .*exclude=\('a_b',\),seed=3: drop one",
        ),
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
    with pytest.raises(ConfigError, match="--grid_index runs one point, alone"):
        run_grid(small_grid(), tmp_path, index=1, jobs=2)


def test_runs_once_and_a_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    calls = []

    def fake_run(config, workdir, console):
        calls.append(workdir.name)
        if config.penalty.beta and len(calls) < 5:
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
    assert set(states.values()) == {"finished before", "failed before: out of luck"}
    text = next(tmp_path.glob("*/failed.txt")).read_text()
    assert text.startswith("out of luck\n\nTraceback ")
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


@pytest.mark.parametrize(
    ("jobs", "said"), [(1, ["", "", ", about 3 min left", ", about 2 min left", ""]),
                       (2, ["", "", "", ", about 60 s left", ""])],
)  # fmt: skip
def test_says_how_long_the_rest_takes(tmp_path, monkeypatch, jobs, said):
    """By what has finished since the start, here or elsewhere, once each job has finished one."""
    now = itertools.count(0, 60)  # a minute passes at each look at the clock
    monkeypatch.setattr(grid, "time", SimpleNamespace(monotonic=lambda: next(now)))
    points = grid_points(small_grid(sparsity={"density": (0.5, 0.6, 0.7)}))
    names = list(points)[:6]
    points = {name: points[name] for name in names}
    monkeypatch.setattr(grid, "grid_points", lambda config: points)
    write_run(tmp_path / names[0], points[names[0]], {})
    (tmp_path / names[1]).mkdir()
    (tmp_path / names[1] / "failed.txt").write_text("out of luck")

    def ends(*_):
        yield names[0], "finished before"
        yield names[1], "failed before: out of luck"
        for name in names[2:4]:
            write_run(tmp_path / name, points[name], {})
            yield name, "finished: "
        write_run(tmp_path / names[5], points[names[5]], {})  # by another process
        yield names[4], "failed: "
        yield names[5], "finished before"

    monkeypatch.setattr(grid, "_run_points", ends)
    console = quiet()
    run_grid(small_grid(), tmp_path, jobs=jobs, console=console)
    lines = console.file.getvalue().splitlines()[:5]
    assert [line[line.find(", about") :] if "left" in line else "" for line in lines] == said
    assert [grid._duration(s) for s in (7.2, 200, 9000)] == ["7 s", "3 min", "2.5 h"]


def test_what_another_process_has_finished_meanwhile_is_finished(tmp_path, monkeypatch):
    """It was running when this one came to it, and has a result when this one ends."""
    points = grid_points(two_points())
    first, second = points

    def ends(*_):
        yield first, "running elsewhere"
        write_run(tmp_path / first, points[first], {})
        yield second, "finished: "

    monkeypatch.setattr(grid, "_run_points", ends)
    console = quiet()
    assert run_grid(two_points(), tmp_path, console=console) == {
        first: "finished before",
        second: "finished: ",
    }
    assert "Run this again" not in console.file.getvalue()


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


def write_run(folder, config, result):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "result.json").write_text(json.dumps(result))


def test_a_mistake_that_only_a_run_finds_is_that_point_s_failure(tmp_path, monkeypatch):
    def refuse(config, workdir, console):
        if config.penalty.beta:
            raise ConfigError("this point cannot work.")
        return {}

    fake = SimpleNamespace(run=refuse, prepare=lambda config, workdir: None)
    monkeypatch.setattr(grid, "experiment_of", lambda config: fake)
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert list(states.values()) == ["finished"] * 2 + ["failed: this point cannot work."] * 2
    assert len(list(tmp_path.glob("*/failed.txt"))) == 2
    # Their directories hold no run, and do not block the others.
    states = run_grid(small_grid(), tmp_path, console=quiet())
    assert list(states.values())[3].startswith("failed before: ")


def test_every_directory_is_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "run_point", None)
    config = small_grid()
    folder = tmp_path / "beta=0.01,density=0.5,seed=4"
    write_run(folder, grid_points(config)[folder.name], {})
    config.train.steps = 3
    with pytest.raises(ConfigError, match=r"belongs to another config: train.steps is 2"):
        run_grid(config, tmp_path, console=quiet())
    (folder / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"seed=4/config.json is damaged: pass another"):
        run_grid(small_grid(), tmp_path, console=quiet())


def test_a_finished_point_is_finished_whatever_is_logged(tmp_path):
    config = small_grid()
    for name, point in grid_points(config).items():
        write_run(tmp_path / name, point, {})
    config.train.log_every, config.data.cache_dir = 7, "elsewhere"
    states = run_grid(config, tmp_path, console=quiet())
    assert set(states.values()) == {"finished before"}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(grid.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked \(Operation not supported\): name a"):
        run_grid(small_grid(), tmp_path, index=0, console=quiet())


def two_points():
    config = small_grid()
    config.grid = ConfigDict({"penalty": {"beta": (0.0,)}})
    return config


def check_nothing(points, workdir, jobs, retry):
    pass


def refuse_all(points, workdir, jobs, retry):
    raise ConfigError("there is no such data.")


def die_at_seed_3(config, workdir, name, retry):
    if config.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return "finished"


def test_a_process_that_dies_is_a_failure_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_check_shared", check_nothing)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "run_point", die_at_seed_3)
        states = run_grid(two_points(), tmp_path, jobs=2, console=quiet())
    name = "beta=0.0,seed=3"
    assert states == {name: "failed: killed by signal 9", "beta=0.0,seed=4": "finished"}
    again = run_grid(two_points(), tmp_path, index=0, console=quiet())
    assert again == {name: "failed before: killed by signal 9"}


def test_with_several_processes_a_shared_mistake_ends_the_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_check_shared", refuse_all)
    with pytest.raises(ConfigError, match="there is no such data"):
        run_grid(two_points(), tmp_path, jobs=2, console=quiet())
    assert not list(tmp_path.iterdir())


def test_several_processes_do_not_share_several_devices(tmp_path):
    with pytest.raises(ConfigError, match=r"each of --jobs=2 processes would take all 4 devices"):
        run_grid(two_points(), tmp_path, jobs=2, console=quiet())
    # Nor is there anything to share where nothing is left to run.
    for name, point in grid_points(two_points()).items():
        write_run(tmp_path / name, point, {})
    states = run_grid(two_points(), tmp_path, jobs=2, console=quiet())
    assert set(states.values()) == {"finished before"}
    for name in grid_points(two_points()):
        (tmp_path / name / "result.json").unlink()
        (tmp_path / name / "failed.txt").write_text("too little memory\n")
    with pytest.raises(ConfigError, match=r"each of --jobs=2 processes would take all 4 devices"):
        run_grid(two_points(), tmp_path, jobs=2, retry=True, console=quiet())


def test_a_first_point_that_cannot_work_is_no_shared_mistake(tmp_path):
    """Also in a config that is locked, as those of the command line are, without these options."""
    config = two_points()
    config.model.options = ConfigDict()
    config.grid = ConfigDict({"model": {"options": {"hidden": ((8,), (8, 8))}}})
    config.seeds = (3,)
    config.lock()
    states = run_grid(config, tmp_path, console=quiet())
    assert states["hidden=(8,),seed=3"].startswith("failed: no pair of features to penalize")
    assert states["hidden=(8,8),seed=3"].startswith("finished")
    # Nor is it where the one that can work has failed before and is tried again.
    workdir = tmp_path / "again"
    failed = workdir / "hidden=(8,8),seed=3" / "failed.txt"
    failed.parent.mkdir(parents=True)
    failed.write_text("too little memory\n")
    states = run_grid(config, workdir, retry=True, console=quiet())
    assert states["hidden=(8,),seed=3"].startswith("failed: no pair of features to penalize")
    assert states["hidden=(8,8),seed=3"].startswith("finished")
    config.grid.model.options.hidden = ((8,), (9,))
    with pytest.raises(ConfigError, match=r"^no pair of features"):
        run_grid(config, tmp_path / "other", console=quiet())
    assert not (tmp_path / "other").exists()
    config.grid.model.options.hidden = ((8,), ("x",))
    with pytest.raises(ConfigError, match=r"^no point can work; hidden=\(8,\),seed=3: no pair of"):
        run_grid(config, tmp_path / "other", console=quiet())


def test_after_a_signal_no_process_is_started_and_the_others_are_stopped(monkeypatch):
    received = []

    @contextmanager
    def stop_signals():
        yield received

    monkeypatch.setattr(grid.loop, "stop_signals", stop_signals)
    threading.Timer(1, received.append, (signal.SIGINT,)).start()
    ended = []
    with pytest.raises(SystemExit, match="Stopped; the same command goes on"):  # noqa: PT012
        for outcome in grid._in_processes({name: (time.sleep, 600) for name in "abc"}, 2):
            ended.append(outcome)
    assert sorted(ended) == [("a", "stopped"), ("b", "stopped")]


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
