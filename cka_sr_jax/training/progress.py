"""How far a run is, on the terminal or in a notebook."""

from __future__ import annotations

import importlib.util
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cka_sr_jax.report import say

# {name of a value: (what it is called here, its format)}
SHOWN = {
    "loss": ("loss", ".4f"),
    "accuracy": ("accuracy", ".4f"),
    "penalty": ("penalty", ".4f"),
    "selection_accuracy": ("held-out accuracy", ".4f"),
    "cka_within_stage": ("within-stage CKA", ".3f"),
}
LINES, SECONDS = 10, 60.0  # without a terminal: so many lines in a run, or one after so long


class ProgressReporter:
    """A progress bar with the latest values; where none can be drawn, about ten lines a run.

    The rate is that of the steps after the first record, since the first ones compile.
    """

    def __init__(self, total: int, done: int, console: Console) -> None:
        """Start at `done` of `total` steps."""
        self.console = console
        self._total = total
        self._values: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # steps and time of the first record
        self._said = (done, time.perf_counter())
        # Rich draws it in a notebook too, by a widget.
        self._draws = console.is_terminal or (
            console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            disable=not self._draws,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, values="")

    def __enter__(self) -> ProgressReporter:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, or leave its last state in a notebook."""
        self._bar.refresh()
        self._bar.stop()

    def update(self, done: int, values: dict[str, float]) -> None:
        """Show that `done` steps have ended, with the latest values of SHOWN."""
        now = time.perf_counter()
        self._values |= {name: value for name, value in values.items() if value is not None}
        shown = "  ".join(
            f"{label} {self._values[name]:{form}}"
            for name, (label, form) in SHOWN.items()
            if name in self._values
        )
        self._bar.update(self._task, completed=done, values=shown)
        rate = ""
        if self._first is None:
            self._first = done, now
        elif done > self._first[0]:
            per_step = (now - self._first[1]) / (done - self._first[0])
            left = (self._total - done) * per_step
            rate = f"{1 / max(per_step, 1e-9):.1f} steps/s  {left:.0f} s left"
        steps, since = self._said
        due = done - steps >= self._total / LINES or now - since >= SECONDS or done == self._total
        if not self._draws and due:
            self._said = done, now
            parts = filter(None, (f"step {done}/{self._total}", shown, rate))
            say(self.console, "  ".join(parts))
