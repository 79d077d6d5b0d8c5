"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and the terminal."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter


class MetricWriter:
    """Appends each record to metrics.jsonl and to TensorBoard events in the work directory.

    What an interrupted run wrote after the step that it resumes from is dropped.
    """

    def __init__(self, workdir: Path, resumed_step: int) -> None:
        """Open the files, keeping the records up to `resumed_step`."""
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, split: str, step: int, values: dict[str, float | None]) -> None:
        """Record the values of one split ("train", ...) at a step; NaN and infinity are null."""
        clean = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"split": split, "step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if value is not None and name != "epoch":
                self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()


def _lines(path: Path) -> list[str]:
    """Complete lines: a killed process may have left half of one."""
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def mean_metrics(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each metric over the steps; of the penalty over those in which it was computed."""
    result = {}
    for name in metrics[0]:
        values = np.array([float(step[name]) for step in metrics])
        if name == "penalty":  # NaN where `every` left it out
            values = values[~np.isnan(values)]
        result[name] = float(values.mean()) if values.size else math.nan
    return result


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
            self.console.print(
                f"step {done}/{self._total}  {shown}  {rate:.1f} steps/s  {remaining:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
