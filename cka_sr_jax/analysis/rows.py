"""A run as a row of a table: its whole config, flat, and its results; such rows as a CSV."""

from __future__ import annotations

import ast
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cka_sr_jax.training.config import RESUMABLE, default_config, flatten
from cka_sr_jax.training.evaluation import EPSILONS

Row = dict[str, Any]

# The fields of result.json that a row holds.
STORED = (
    "test.accuracy",
    "test.loss",
    "test.images",
    "validation.accuracy",
    "density",
    "explored",
    "flops",
    "training_flops",
    "cka_within_stage",
    "cka_cross_stage",
    "cka_least_neighbors",  # of two features of a stage that are next to each other
    "cka_most_neighbors",
    "outlier_share",
    "effective_rank",  # mean over the features
    *(f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS),
    "wall_seconds",
)
# The share of the KEPT weights with |w| < epsilon; `epsilon_sparsity` counts pruned ones too.
KEPT_BELOW = {f"kept_below.{epsilon:g}": f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS}
RESULTS = (*STORED, *KEPT_BELOW)

# Those shown in percent: accuracies, and shares of weights and of variance.
SHARES = [
    name
    for name in RESULTS
    if any(word in name for word in ("accuracy", "density", "explored", "share", "epsilon", "kept"))
]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names in any of the rows: the config's first, then the results."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name in RESULTS)


def config_row(config: Mapping[str, Any]) -> Row:
    """A run's config, flat, without the fields that do not change what it computes.

    Fields that are newer than the run have their default.
    """
    row: Row = {}
    for field, value in (flatten(default_config()) | flatten(config)).items():
        if field not in RESUMABLE:
            value = tuple(value) if isinstance(value, list) else value
            row[field] = None if value == "" else value
    return row


def parse_value(text: str) -> Any:
    """The value that `text` stands for: a number, None for "", a tuple or a bool, else the text."""
    if text == "":
        return None
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(text)
        except (ValueError, SyntaxError):
            continue
    return text


def kept_below(row: Row) -> Row:
    """KEPT_BELOW of a run, None if its density does not count all weights or it diverged.

    With density d, a share e of all weights that is small is (e - (1 - d)) / d of the kept ones.
    """
    chosen = row.get("sparsity.include") or row.get("sparsity.exclude")
    unknown_share = chosen or row.get("test.loss", 0.0) is None
    density = None if unknown_share else row.get("density")
    found: Row = dict.fromkeys(KEPT_BELOW)
    for name, source in KEPT_BELOW.items():
        small = row.get(source)
        if density and small is not None:
            found[name] = max(0.0, (small - (1 - density)) / density)  # both are rounded
    return found


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """The rows as CSV, numbers with every digit; reading them computes KEPT_BELOW again."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        names = [name for name in columns_of(rows) if name not in KEPT_BELOW]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> dict[str, Row]:
    """{file and line: row} of a CSV of `write_csv`.

    Raises:
      ValueError: the file is not one; a line with too few or too many values, or a result that is
        not a number.
    """
    defaults = config_row({})  # of fields that are newer than the file
    rows: dict[str, Row] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        try:
            lines = [(reader.line_num, line) for line in reader if line]
        except (UnicodeDecodeError, csv.Error):
            lines = []
    columns = lines[0][1] if lines else []
    for column in ("test.accuracy", "test.loss"):
        if column not in columns:
            raise ValueError(
                f"{path} is not a CSV of runs, since it has no column {column}: name one that "
                "`--csv` wrote."
            )
    for number, line in lines[1:]:
        place = f"{path}, line {number}"
        if len(line) != len(columns):
            raise ValueError(
                f"{place} has {len(line)} values and the header has {len(columns)}: restore the "
                "line, or delete it."
            )
        given = zip(columns, line, strict=True)
        row = {field: parse_value(text) for field, text in given if field not in RESUMABLE}
        check_numbers(row, place)
        rows[place] = defaults | row
    return rows


def check_once(rows: Sequence[Row], places: Sequence[str]) -> None:
    """Raise ValueError if two rows agree in the whole config, seed included."""
    seen: dict[str, str] = {}
    for row, place in zip(rows, places, strict=True):
        given = {n: value for n, value in row.items() if n not in RESULTS and value is not None}
        config = str(sorted(given.items()))
        if config in seen:
            raise ValueError(
                f"{seen[config]} and {place} have one config, seed included: name one of them."
            )
        seen[config] = place


def check_numbers(row: Row, place: str) -> None:
    """Raise ValueError if a result of the row is not a number; None is one that the run lacks.

    Args:
      place: where the row was read, for the message.
    """
    for name in (*STORED, "seed", "devices"):
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(
                f"{place} has {name}={value!r}: expected a number, so correct it or leave this run "
                "out."
            )
