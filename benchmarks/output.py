"""The tables of the benchmarks, with the hardware and the versions that they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence

import jax
import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; its caption names the hardware and jax's version."""
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


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Mean and half-width of the 95 % t interval."""
    half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def spread(values: Iterable[float], digits: int = 4) -> str:
    """Mean and range."""
    given = list(values)
    low, high = (f"{bound:.{digits}f}" for bound in (min(given), max(given)))
    mean = f"{np.mean(given):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"
