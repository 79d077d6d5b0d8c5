"""metrics.jsonl, a record of numbers in each line: written, shown in TensorBoard, and read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cka_sr_jax.report.parse import parse_stored
from cka_sr_jax.report.watch import TensorBoard, Watcher, cka_pixels


class MetricWriter:
    """Appends each record to metrics.jsonl and shows it in TensorBoard, and elsewhere by choice.

    What an interrupted run wrote after the step that it resumes from is dropped.

    Attributes:
      damaged: lines that were no records, and are dropped.
    """

    def __init__(self, workdir: Path, resumed_step: int, also: Sequence[Watcher] = ()) -> None:
        """Open the files, keeping the records up to `resumed_step`.

        Args:
          also: where to show the run besides TensorBoard; the caller closes these.
        """
        path = workdir / "metrics.jsonl"
        records = [_record(line) for line in _complete_lines(path)]
        self.damaged = records.count(None)
        kept = [json.dumps(r) for r in records if r is not None and r["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        self._events = TensorBoard(workdir, resumed_step)
        self._watchers: list[Watcher] = [self._events, *also]

    def write(self, split: str, step: int, values: dict[str, float | None]) -> None:
        """Record the values of one split ("train", ...) at a step; NaN and infinity are null."""
        clean = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"split": split, "step": step, **clean}) + "\n")
        self._file.flush()
        for watcher in self._watchers:
            watcher.scalars(split, step, clean)

    def show_weights(self, step: int, weights: Mapping[str, np.ndarray]) -> None:
        """Show how the weights of each layer are distributed, where there are any."""
        for watcher in self._watchers:
            watcher.histograms(step, {path: array for path, array in weights.items() if array.size})

    def show_cka(self, step: int, matrix: np.ndarray, groups: Sequence[str]) -> None:
        """Show CKA [L, L] between the features as an image; `groups` are their L stages."""
        pixels = cka_pixels(matrix, groups)
        for watcher in self._watchers:
            watcher.image(step, "cka", pixels)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._events.close()


def mean_metrics(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each metric over the steps; of the penalty over the steps that computed it.

    Steps whose "finite" is 0 were skipped: they are counted as "skipped_steps" and left out.
    """
    taken = [step for step in metrics if step.get("finite", True)]
    skipped = len(metrics) - len(taken)
    result = {"skipped_steps": float(skipped)} if skipped else {}
    for name in metrics[0]:
        if name == "finite":
            continue
        values = np.array([float(step[name]) for step in taken])
        if name == "penalty":  # NaN where `every` left it out
            values = values[~np.isnan(values)]
        result[name] = float(values.mean()) if values.size else math.nan
    return result


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without damaged lines; none where there is no file."""
    records = [_record(line) for line in _complete_lines(path)]
    return [record for record in records if record is not None]


def damaged_lines(path: Path) -> int:
    """How many lines of a metrics.jsonl are no records, an unfinished last one included."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return sum(_record(line) is None for line in lines if line)


def _record(line: str) -> dict[str, Any] | None:
    """What a line holds; None where it is damaged."""
    try:
        record = parse_stored(line)
        whole = isinstance(record["step"], int) and isinstance(record["split"], str)
        values = [value for name, value in record.items() if name != "split"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if whole and all(isinstance(v, int | float | None) for v in values) else None


def _complete_lines(path: Path) -> list[str]:
    """All lines but a last one that a killed process wrote half of."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(errors="replace").split("\n")
    return [line for line in lines if line]
