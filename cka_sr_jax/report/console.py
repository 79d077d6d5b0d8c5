"""What a run prints: lines of text, and the layers' table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cka_sr_jax.accounting import LayerRow, fold_vectors, row_text, total_row


def say(console: Console, text: str) -> None:
    """Print a line as it is: a path may have brackets, which rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def console_table(rows: Sequence[LayerRow]) -> Table:
    """The rows as a table for the terminal; biases and normalization share a line."""
    table = Table(show_footer=True, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")  # a path that is cut off names no layer
    table.add_column("shape")
    for name in ("params", "kept", "density", "FLOPs", "sparse"):
        table.add_column(name, justify="right")
    for row in fold_vectors(rows):
        table.add_row(*map(Text, row_text(row)))
    for column, text in zip(table.columns, row_text(total_row(rows)), strict=True):
        column.footer = text
    return table
