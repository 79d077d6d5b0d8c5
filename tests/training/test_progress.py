"""How far a run is, with a terminal and without one."""

import io
import re

import pytest
from rich.console import Console

from cka_sr_jax.training import progress
from cka_sr_jax.training.progress import ProgressReporter


def lines_of(console):
    return [line for line in console.file.getvalue().splitlines() if line]  # rich 13 adds an empty


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_without_a_terminal_a_line_has_steps_and_the_latest_values(clock):
    console = Console(file=io.StringIO())
    with ProgressReporter(10, done=4, console=console) as reporter:
        reporter.update(5, {"selection_accuracy": 0.875, "cka_within_stage": None})
        clock[0] = 2.0
        reporter.update(6, {"loss": 0.5, "penalty": 0.25, "other": 1.0})
    assert lines_of(console) == [
        "step 5/10  held-out accuracy 0.8750",
        "step 6/10  loss 0.5000  penalty 0.2500  held-out accuracy 0.8750  0.5 steps/s  8 s left",
    ]


def test_the_rate_is_of_the_steps_after_the_first_record(clock):
    """The first ten steps take 60 s, as they compile; each further one takes half a second."""
    console = Console(file=io.StringIO())
    with ProgressReporter(100, done=0, console=console) as reporter:
        clock[0] = 60.0
        reporter.update(10, {})
        clock[0] = 70.0
        reporter.update(30, {})
    assert lines_of(console) == ["step 10/100", "step 30/100  2.0 steps/s  35 s left"]


def test_ten_lines_in_a_run_or_one_in_a_minute(clock):
    console = Console(file=io.StringIO())
    with ProgressReporter(1000, done=0, console=console) as reporter:
        for done in range(1, 1001):
            reporter.update(done, {})
    assert [int(re.findall(r"\d+", line)[0]) for line in lines_of(console)] == list(
        range(100, 1001, 100)
    )
    console = Console(file=io.StringIO())
    with ProgressReporter(1000, done=0, console=console) as reporter:
        for done in range(1, 11):
            clock[0] += 20.0
            reporter.update(done, {})
    assert [int(re.findall(r"\d+", line)[0]) for line in lines_of(console)] == [3, 6, 9]


def test_a_terminal_shows_the_values_beside_the_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with ProgressReporter(10, done=0, console=console) as reporter:
        reporter.update(5, {"loss": 0.5})
    assert "5/10" in console.file.getvalue()
    assert "loss 0.5000" in console.file.getvalue()
