"""How long the rest of a grid takes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from cka_sr_jax.sweeps.states import has_finished


class TimeLeft:
    """Estimates the time that the remaining points take, from those that finish after this is made.

    Args:
      folders: the directories of the points that have to run.
      jobs: how many run side by side here.
    """

    def __init__(self, folders: Iterable[Path], jobs: int):
        self._folders = list(folders)
        self._jobs = jobs
        self._start = time.monotonic()

    def seconds(self, ended: Collection[str]) -> float | None:
        """The estimate; None if no point is left, or too few have finished.

        Args:
          ended: the names of the points that have ended here, failed ones included. Points that
            other processes have finished are found by their results.
        """
        finished = [folder for folder in self._folders if has_finished(folder)]
        left = [f for f in self._folders if f not in finished and f.name not in ended]
        # The first of several side by side says little yet.
        if not left or len(finished) < self._jobs:
            return None
        return (time.monotonic() - self._start) / len(finished) * len(left)


def duration(seconds: float) -> str:
    """As in "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
