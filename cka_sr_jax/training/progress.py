"""How far a run is, on the terminal."""

from __future__ import annotations

import math
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


class ProgressReporter:
    """A progress bar with rate and remaining time; plain lines where there is no terminal."""

    def __init__(self, total: int, done: int, console: Console) -> None:
        """Start at `done` of `total` steps."""
        self.console = console
        self._total = total
        self._start = (done, time.perf_counter())
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, rate="")

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
        """Take the bar away."""
        self._bar.stop()

    def update(self, done: int, values: dict[str, float]) -> None:
        """Show that `done` steps have ended, with the training values of the last ones."""
        first, since = self._start
        rate = (done - first) / max(time.perf_counter() - since, 1e-9)
        remaining = (self._total - done) / rate if rate else math.inf
        self._bar.update(self._task, completed=done, rate=f"{rate:.1f} steps/s")
        if not self.console.is_terminal:
            shown = "  ".join(
                f"{name} {values[name]:.4f}"
                for name in ("loss", "accuracy", "penalty")
                if name in values
            )
            say(
                self.console,
                f"step {done}/{self._total}  {shown}  {rate:.1f} steps/s  {remaining:.0f} s left",
            )
