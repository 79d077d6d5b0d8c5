"""Markdown tables, in the one form that every command of the project prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RULES = {"l": "---", "r": "---:"}


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None
) -> str:
    """The lines of a Markdown table, without a newline at the end.

    Args:
      header: one name per column.
      rows: cells as text.
      align: a letter per column, "l" for left and "r" for right; None: the first column left and
        all others right.

    Raises:
      ValueError: `align` or a row does not have one entry per column.
    """
    align = "l" + "r" * (len(header) - 1) if align is None else align
    lines = [header, [RULES[letter] for letter in align], *rows]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(
                f"a line of the table has {len(line)} entries for {len(header)} columns: give one "
                "entry per column."
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
