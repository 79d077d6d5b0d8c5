"""Interleaved timing: rivals take turns in one process, so a noisy machine hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, inner: Mapping[str, int] | None = None
) -> dict[str, float]:
    """{name: median seconds of one call}, after a warm-up call of each.

    `inner` is how many calls one timing spans, for calls too short to time on their own.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        # Back and forth, so that none always runs right after the same other.
        for name, call in list(calls.items())[:: -1 if i % 2 else 1]:
            count = (inner or {}).get(name, 1)
            start = time.perf_counter()
            for _ in range(count):
                result = call()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table, with the hardware and the versions that it was measured on."""
    device = jax.devices()[0]
    hardware = f"{device.platform}: {device.device_kind}"
    if device.platform == "cpu":
        hardware += f", {platform.machine()}, {os.cpu_count()} cores"
    table = Table(title=title, caption=f"{hardware}; jax {jax.__version__}")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
