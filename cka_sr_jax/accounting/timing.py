"""Time of rival functions, measured in turns so that a noisy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved_seconds(
    calls: Mapping[str, Callable[[], Any]], repeats: int, inner: Mapping[str, int] | None = None
) -> dict[str, float]:
    """{name: median seconds of one call}; see `interleaved_times`."""
    times = interleaved_times(calls, repeats, inner)
    return {name: statistics.median(values) for name, values in times.items()}


def interleaved_times(
    calls: Mapping[str, Callable[[], Any]], repeats: int, inner: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """{name: seconds of one call, in each repeat}, after a warm-up call of each.

    Each repeat times every rival once, in alternating order, and waits for the result.

    Args:
      calls: {name: function without arguments that returns JAX arrays}.
      repeats: timings of each.
      inner: {name: calls in one timing}, for calls too short to time alone; default 1. Only the
        last call of a timing is waited for.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        # Back and forth, so that no rival always runs right after the same other one.
        for name, call in list(calls.items())[:: -1 if i % 2 else 1]:
            count = (inner or {}).get(name, 1)
            start = time.perf_counter()
            for _ in range(count):
                result = call()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / count)
    return times
