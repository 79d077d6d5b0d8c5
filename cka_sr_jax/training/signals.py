"""What asks a run to stop, held until it has saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

# Of a batch system or a cloud, of Ctrl-C, and of a terminal that is closed. Windows lacks the last.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


def stop_numbers() -> list[int]:
    """The signals that stop a run here: a closed terminal does not where `nohup` has said so."""
    hup = getattr(signal, "SIGHUP", None)
    return [n for n in STOP_SIGNALS if n != hup or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def stop_signals(console: Console | None = None) -> Iterator[list[int]]:
    """A list that a stop signal fills, so that the loop can save before it stops.

    Args:
      console: a pipe that nobody reads any more counts as a signal too, and the console is silent
        from then on.
    """
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        # A second Ctrl-C is impatience. A second SIGTERM is not: stopping a group sends two.
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if console is not None and number == getattr(signal, "SIGHUP", None):
            console.quiet = True  # its terminal is gone
        received.append(number)

    def on_broken_pipe() -> None:
        assert console is not None
        console.quiet = True
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), console.file.fileno())  # or Python complains as it ends
        received.append(getattr(signal, "SIGPIPE", signal.SIGTERM))

    try:
        before = {number: signal.signal(number, on_signal) for number in stop_numbers()}
    except ValueError:  # outside the main thread signals belong to somebody else
        before = {}
    if console is not None:
        console.on_broken_pipe = on_broken_pipe  # type: ignore[method-assign]
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if console is not None:
            del console.on_broken_pipe
