"""How far a run is, on a terminal, in a notebook, and where there is neither."""

import importlib.machinery
import io
import re
import sys
import types

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


def progress_on(console):
    with ProgressReporter(10, done=4, console=console) as progress:
        progress.update(7, {"loss": 0.5, "penalty": 0.25, "other": 1.0})


def assert_plain(printed):
    (line,) = filter(None, printed.splitlines())  # rich 13 adds an empty one
    assert line == "step 7/10  loss 0.5000  penalty 0.2500"


class Output:
    """A widget that notes what is drawn in it."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def clear_output(self, wait):
        return None


def notebook(monkeypatch, with_widgets):
    """What is displayed, as text, in a notebook that has IPython and maybe ipywidgets."""
    shown = []
    display = types.ModuleType("IPython.display")
    display.display = lambda *items, **_: shown.extend(
        item if isinstance(item, Output) else item._repr_mimebundle_([], [])["text/plain"]
        for item in items
    )
    widgets = types.ModuleType("ipywidgets")
    widgets.Output = Output
    widgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    for name, module in {
        "IPython": types.ModuleType("IPython"),
        "IPython.display": display,
        "ipywidgets": widgets if with_widgets else None,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return shown


def test_in_a_notebook_the_bar_is_drawn_in_a_widget(monkeypatch):
    shown = notebook(monkeypatch, with_widgets=True)
    progress_on(Console(force_jupyter=True))
    widget, *drawn = shown
    assert isinstance(widget, Output)
    assert "7/10" in next(text for text in reversed(drawn) if text)  # the last state stays
    assert not any("step 7/10" in text for text in drawn)


def test_in_a_notebook_without_widgets_lines_are_printed(monkeypatch):
    shown = notebook(monkeypatch, with_widgets=False)
    progress_on(Console(force_jupyter=True, width=200))
    assert_plain("".join(shown))
