"""The tables of a layer-sparsity experiment, and the timing that one of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float
from rich import box
from rich.console import Console
from rich.table import Table

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.layer_sparsity import Chain, apply_chain
from cka_sr_jax.report import markdown_table

TIMINGS, CALLS = 40, 5  # timings of each network, and calls in each


class Network(NamedTuple):
    """One row: a network's size, errors and inference time for one batch.

    `multiply_adds` are those of dense hardware for one example; `nonzero_multiply_adds` leave out
    the weights that are 0. `relative_time` is against the network trained without penalty.
    """

    name: str
    depth: int
    active: int
    hidden: list[int]
    parameters: int
    multiply_adds: int
    nonzero_multiply_adds: int
    validation_error: float
    test_error: float
    microseconds: float
    relative_time: float


class TextTable(NamedTuple):
    """A table of text, for the terminal and for Markdown."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def inference_seconds(
    chains: Mapping[str, Chain], inputs: Float[Array, "b in"]
) -> dict[str, float]:
    """{name: median seconds of one call} on this batch; the networks take turns in one process."""
    call = jax.jit(apply_chain)
    chains = {name: jax.device_put(chain) for name, chain in chains.items()}
    calls = {
        # Waits for each call, as one who asks for one batch at a time does.
        name: lambda chain=chain: jax.block_until_ready(call(chain, inputs))
        for name, chain in chains.items()
    }
    return interleaved_seconds(calls, TIMINGS, dict.fromkeys(calls, CALLS))


def path_table(result: Mapping[str, Any]) -> TextTable:
    """The path of strengths, or of layers removed by a score; a star marks the chosen point."""
    by_score = _score(result) != "none"
    first = "removed" if by_score else "strength"
    columns = [first, "depth", "active", "MACs", "fitted", "warm", "cold", "s.e."]
    rows = [
        [
            (str(removed) if by_score else f"{row['strength']:g}")
            # Results of before there were scores do not say "chosen".
            + (" *" if row.get("chosen", row["strength"] == result["chosen_strength"]) else ""),
            str(row["depth"]),
            " ".join(map(str, row["active"])) or "none",
            f"{row['multiply_adds']:,}",
            f"{row['validation_error']:.4f}",
            *(
                "-" if row[error] is None else f"{row[error]:.4f}"
                for error in ("warm_validation_error", "cold_validation_error")
            ),
            f"{row['standard_error']:.4f}",
        ]
        for removed, row in enumerate(result["path"])
    ]
    title = f"Path: validation {result['error']}, fitted and refitted (warm, cold start)"
    return TextTable(title, columns, rows)


def networks_table(result: Mapping[str, Any]) -> TextTable:
    """The networks before and after; a star marks the refit to keep."""
    columns = [
        "network", "depth", "params", "MACs", "non-zero", "valid.", "test", "µs", "ratio",
    ]  # fmt: skip
    rows = [
        [
            row["name"] + (" *" if row["name"] == f"refit, {result['chosen_start']}" else ""),
            str(row["depth"]),
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            f"{row['nonzero_multiply_adds']:,}",
            f"{row['validation_error']:.4f}",
            f"{row['test_error']:.4f}",
            f"{row['microseconds']:.0f}",
            f"{row['relative_time']:.2f}",
        ]
        for row in result["networks"]
    ]
    merged = "" if result["chosen_merged"] else ", no layer merged"
    score = _score(result)
    how = f"Strength {result['chosen_strength']:g}" if score == "none" else f"By score {score!r}"
    title = (
        f"{how}{merged}: {result['error']}, and time for a "
        f"batch of {result['inference_batch']} on {result['device']}"
    )
    return TextTable(title, columns, rows)


def _score(result: Mapping[str, Any]) -> str:
    """By which layers were removed; results of before there were scores have none."""
    return str(result.get("score", "none"))


def print_table(text: TextTable, console: Console) -> None:
    """To the terminal, in full: on a narrow one the lines get too long, and nothing is cut."""
    table = Table(
        title=text.title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    for i, column in enumerate(text.columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in text.rows:
        table.add_row(*row)
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    table.width = needed if needed > console.width else None
    console.print(table, crop=False)
    console.print()


def to_markdown(text: TextTable) -> str:
    """As Markdown, with a blank line at the end."""
    return f"{text.title}:\n\n{markdown_table(text.columns, text.rows)}\n\n"
