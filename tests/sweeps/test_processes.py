"""Calls in processes of their own: what they return, how they die, and how they are stopped."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest

from cka_sr_jax.sweeps import processes
from cka_sr_jax.sweeps.processes import STOPPED, Died, in_processes
from cka_sr_jax.training import ConfigError


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise ConfigError("there is no such data.")


@pytest.mark.slow
def test_each_call_has_an_outcome_even_if_its_process_dies(monkeypatch):
    monkeypatch.setenv("NPROC", "5")
    calls = {
        "share": partial(os.getenv, "NPROC"),
        "killed": kill_oneself,
        "exits": partial(os._exit, 3),
        "stops": partial(exit, 0),  # as a run does that got SIGTERM and has saved
    }
    outcomes = dict(in_processes(calls, 2))
    assert outcomes == {
        "share": str(max(1, os.cpu_count() // 2)),
        "killed": "killed by signal 9",
        "exits": "ended with status 3",
        "stops": STOPPED,
    }
    died = {name for name, outcome in outcomes.items() if isinstance(outcome, Died)}
    assert died == {"killed", "exits"}
    assert os.environ["NPROC"] == "5"


def test_a_process_has_the_environment_of_its_start(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("CKA_SR_JAX_TEST", value)
        outcomes = dict(in_processes({"value": partial(os.getenv, "CKA_SR_JAX_TEST")}, 1))
        assert outcomes == {"value": value}


def blocks_ctrl_c():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_process_gets_ctrl_c():
    assert dict(in_processes(dict.fromkeys("ab", blocks_ctrl_c), 1)) == {"a": True, "b": True}


def test_a_mistake_in_the_config_ends_the_others():
    start = time.monotonic()
    with pytest.raises(ConfigError, match="there is no such data"):
        list(in_processes({"wrong": refuse, "long": partial(time.sleep, 600)}, 2))
    assert time.monotonic() - start < 300


def test_after_a_signal_no_process_is_started_and_the_others_are_stopped(monkeypatch):
    received = []

    @contextmanager
    def stop_signals():
        yield received

    monkeypatch.setattr(processes, "stop_signals", stop_signals)
    threading.Timer(1, received.append, (signal.SIGINT,)).start()
    ended = []
    with pytest.raises(SystemExit, match="Stopped; the same command goes on"):  # noqa: PT012
        for outcome in in_processes({name: partial(time.sleep, 600) for name in "abc"}, 2):
            ended.append(outcome)
    assert sorted(ended) == [("a", STOPPED), ("b", STOPPED)]
