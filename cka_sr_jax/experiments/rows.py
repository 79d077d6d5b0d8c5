"""Rows of stored results: a finished run's config and figures, from its folder or a CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cka_sr_jax.training.config import flatten, read_config
from cka_sr_jax.training.evaluation import EPSILONS

Row = dict[str, Any]

# What a run's row holds of its result.json.
RESULTS = (
    "test.accuracy",
    "test.loss",
    "validation.accuracy",
    "density",
    "explored",
    "flops",
    "training_flops",
    "cka_within_stage",
    "cka_cross_stage",
    *(f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS),
    "wall_seconds",
)
# Fields of the config that say where things are, not what was run.
PLACES = ("data.dir", "data.cache_dir")


def read_runs(paths: Iterable[str | Path], keep: Sequence[str] = ()) -> list[Row]:
    """One row for each finished run: the config's fields that differ between runs, and RESULTS.

    Args:
      paths: folders that hold runs' folders, and CSV files of `write_csv`.
      keep: fields of the config to hold even where all runs agree.

    Raises:
      ValueError: a path without a finished run.
    """
    rows = []
    for path in map(Path, paths):
        found = _read_csv(path) if path.is_file() else _read_folder(path)
        if not found:
            raise ValueError(f"{path} holds no finished run: name a grid's folder or a CSV of one.")
        rows += found
    fields = list(dict.fromkeys(field for row in rows for field in row))
    varying = [
        field
        for field in fields
        if field in (*RESULTS, *keep) or len({str(row.get(field)) for row in rows}) > 1
    ]
    return [{field: row.get(field) for field in varying} for row in rows]


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """The rows as CSV, numbers with every digit."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_alike(rows: Sequence[Row], allowed: Sequence[str]) -> None:
    """Raise ValueError where the rows differ in a field of the config that is not `allowed`."""
    for field in rows[0]:
        values = {str(row.get(field)) for row in rows}
        if field not in (*RESULTS, *allowed) and len(values) > 1:
            raise ValueError(
                f"runs that are compared differ in {field} ({', '.join(sorted(values))}): name it "
                "in --rows."
            )


def in_order(value: Any) -> tuple[Any, ...]:
    """A key to sort values by: what is no number first, and then the numbers."""
    number = isinstance(value, int | float)
    return number, value if number else str(value)


def cell_text(value: Any) -> str:
    """A value as tables and figures show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read_folder(folder: Path) -> list[Row]:
    rows = []
    for result in sorted(folder.glob("*/result.json")):
        if (result.parent / "config.json").exists():
            results = flatten(json.loads(result.read_text()))
            found = {name: results.get(name) for name in RESULTS}
            rows.append(as_row(result.parent / "config.json") | found)
    return rows


def as_row(config: Path) -> Row:
    """A run's config, without the fields that say where things are."""
    return {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in read_config(config).items()
        if field not in PLACES
    }


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {field: _number(text) for field, text in row.items()} for row in csv.DictReader(file)
        ]


def _number(text: str) -> Any:
    """The number, None or text that a cell of a CSV stands for."""
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
