"""What the commands of this package share: values as text, checks, and the notes below tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cka_sr_jax._errors import unknown
from cka_sr_jax.analysis.rows import RESULTS, Row, columns_of


def cell_text(value: Any) -> str:
    """A value as tables and figures show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_order(value: Any) -> tuple[Any, ...]:
    """A sort key for mixed values: other values first, by their text, then numbers by size."""
    number = isinstance(value, int | float)
    return number, value if number else str(value)


def check_result(name: str) -> None:
    """Raise ValueError if `name` is not in RESULTS."""
    if name not in RESULTS:
        raise ValueError(unknown("figure of a run:", name, RESULTS))


def row_fields(text: str, beside: str | None) -> list[str]:
    """The fields of an option --rows, which separates them by commas.

    Args:
      beside: a field that has another place in the table, and so cannot make its rows.

    Raises:
      ValueError: an empty name, or one that occurs twice.
    """
    fields = text.split(",")
    if "" in fields:
        raise ValueError(
            f"--rows={text} has an empty name: name fields separated by commas, such as "
            "--rows=sparsity.rule,sparsity.density."
        )
    named = [*fields, beside]
    if twice := [field for i, field in enumerate(named) if field in named[:i]]:
        raise ValueError(
            f"--rows={text} names {twice[0]}, which is named already: name another field, or none."
        )
    return fields


def check_alike(
    rows: Sequence[Row], allowed: Sequence[str], remedy: str = "name {} in --rows"
) -> None:
    """Raise ValueError if the rows differ in a config field that is not `allowed`.

    Args:
      rows: of `read_runs`, or of `config_row`.
      allowed: the fields that may differ.
      remedy: what to do, with {} for "it" or "them".
    """
    differing = {}
    for field in columns_of(rows):
        values = {str(row.get(field)) for row in rows}
        if field not in (*RESULTS, *allowed) and len(values) > 1:
            differing[field] = f"{field} ({', '.join(sorted(values))})"
    if differing:
        pronoun = "it" if len(differing) == 1 else "them"
        raise ValueError(
            f"runs that are compared differ in {' and '.join(differing.values())}: "
            f"{remedy.format(pronoun)}."
        )


def notes(rows: Iterable[Row], paths: Iterable[str | Path] = ()) -> list[str]:
    """The notes that belong below a table of these rows.

    They tell that runs were selected on the test set, that runs diverged, and that a folder holds
    runs that did not finish.

    Args:
      rows: of `read_runs`.
      paths: where the rows were read from.
    """
    rows, found = list(rows), []
    if any(row.get("eval.select") == "best-test" for row in rows):
        found.append(
            "Runs with eval.select=best-test: their weights were selected on the test set."
        )
    if diverged := sum(row.get("test.loss", 0.0) is None for row in rows):
        found.append(f"Diverged, with a test loss that is not finite: {diverged} of these runs.")
    for folder in map(Path, paths):
        begun = {
            path.parent
            for name in ("config.json", "failed.txt")
            for path in folder.glob(f"*/{name}")
        }
        if unfinished := sum(not (run / "result.json").exists() for run in begun):
            found.append(f"Not finished or failed, and so left out: {unfinished} runs of {folder}.")
    return found


def error_line(error: ValueError | OSError) -> str:
    """The line with which a command ends at this error."""
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename} cannot be used ({error.strerror}): name another path."
    return f"error: {error}"
