"""A signal stops a run between two steps."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cka_sr_jax.training import Checkpoints, loop, recorder
from cka_sr_jax.workflows import run
from tests.training.runs import small_config, wait_for_step

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("log_every", "step"), [(1, 2), (6, 6)])
def test_a_signal_while_a_step_is_recorded_waits_for_the_next(
    log_every, step, tmp_path, monkeypatch
):
    """At the last step there is no next one: it waits until that step is saved."""
    config = small_config(train__steps=6, train__log_every=log_every, penalty__beta=0.0)
    received = []

    @contextmanager
    def stop_signals(console):
        yield received

    average = recorder.mean_metrics
    monkeypatch.setattr(loop, "stop_signals", stop_signals)
    monkeypatch.setattr(
        recorder, "mean_metrics", lambda steps: (received.append(15), average(steps))[1]
    )
    with pytest.raises(SystemExit, match=f"Stopped at step {step} of 6"):
        run(config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == step
    checkpoints.close()


# Started through another program, since this one has threads: it must not run Python in a fork.
WITH_HANGUP = """import os, signal, sys
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"""


def small_launch(workdir, stdout=subprocess.DEVNULL, hangup="SIG_DFL"):
    """A long run; by default it heeds SIGHUP also where the tests were started by nohup."""
    arguments = ["--config.train.steps=100000", "--config.train.log_every=20"]
    run = ["launch.py", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", WITH_HANGUP, hangup, *run],
        cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_saves_within_a_step_and_ends_in_one_line(name, tmp_path):
    process = small_launch(tmp_path)
    wait_for_step(tmp_path, 40)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    (line,) = errors.splitlines()
    assert "the same command goes on there" in line
    step = int(line.split()[3])
    assert Checkpoints(tmp_path).latest_step() == step


@pytest.mark.slow
def test_a_closed_terminal_does_not_stop_what_nohup_started(tmp_path):
    process = small_launch(tmp_path, hangup="SIG_IGN")
    wait_for_step(tmp_path, 20)
    process.send_signal(signal.SIGHUP)
    wait_for_step(tmp_path, 60)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "the same command goes on there" in errors


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    process = small_launch(tmp_path)
    wait_for_step(tmp_path, 40)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_ctrl_c_while_modules_load_is_one_line(seconds, tmp_path):
    process = small_launch(tmp_path / "run")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert len(errors.splitlines()) == 1
    assert process.returncode in (1, 130)


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_any_more_saves_and_ends(tmp_path):
    process = small_launch(tmp_path, stdout=subprocess.PIPE)
    wait_for_step(tmp_path, 20)
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    process.wait(60)
    assert errors.startswith("Stopped at step ")
    assert len(errors.splitlines()) == 1
    assert Checkpoints(tmp_path).steps()
