"""SIGTERM and Ctrl-C, held until a run has saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C fills, so that the loop can save before it stops."""
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        # A second Ctrl-C is impatience. A second SIGTERM is not: stopping a group sends two.
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # outside the main thread signals belong to somebody else
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
