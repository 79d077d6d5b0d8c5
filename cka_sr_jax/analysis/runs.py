"""Rows of stored results: a finished run's config and figures, from its folder or a CSV."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cka_sr_jax._errors import unknown
from cka_sr_jax.training.config import RESUMABLE, default_config, flatten, read_config
from cka_sr_jax.training.evaluation import EPSILONS

Row = dict[str, Any]

# What a run's row holds of its result.json, and what follows from that.
STORED = (
    "test.accuracy",
    "test.loss",
    "validation.accuracy",
    "density",
    "explored",
    "flops",
    "training_flops",
    "cka_within_stage",
    "cka_cross_stage",
    "outlier_share",
    *(f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS),
    "wall_seconds",
)
# The share of the KEPT weights with |w| < epsilon; `epsilon_sparsity` counts pruned ones too.
KEPT_BELOW = {f"kept_below.{epsilon:g}": f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS}
RESULTS = (*STORED, *KEPT_BELOW)

# Those in percent: accuracies, and shares of weights and of variance.
SHARES = [
    name
    for name in RESULTS
    if any(word in name for word in ("accuracy", "density", "explored", "share", "epsilon", "kept"))
]


def read_runs(paths: Iterable[str | Path], fields: Sequence[str] = ()) -> list[Row]:
    """One row for each finished run: its whole config, how many "devices" it had, and RESULTS.

    Fields that do not change what a run computes, such as `data.dir`, are left out. The number of
    devices does: each has BatchNorm statistics and CKA samples of its own. None and "" are both
    None.

    Args:
      paths: runs' folders, folders that hold some, and CSV files of `write_csv`.
      fields: of the config, which the runs must have.

    Raises:
      ValueError: a path without a finished run; a run that occurs twice; no such field.
    """
    rows: list[Row] = []
    places: list[Path] = []  # of each row
    for path in map(Path, paths):
        found = _read_csv(path) if path.is_file() else _read_folder(path)
        if not found:
            raise ValueError(f"{path} holds no finished run: name its folder, a grid's or a CSV.")
        rows += found.values()
        places += found
    names = _columns(rows)
    for field in fields:
        if field not in names:
            raise ValueError(unknown("field of these runs:", field, names))
    rows = [{name: row.get(name) for name in names} | _kept_below(row) for row in rows]
    _check_once(rows, places)
    return rows


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """The rows as CSV, numbers with every digit; KEPT_BELOW follows again when they are read."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        names = [name for name in _columns(rows) if name not in KEPT_BELOW]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_result(name: str) -> None:
    """Raise ValueError where RESULTS has no such name."""
    if name not in RESULTS:
        raise ValueError(unknown("figure of a run:", name, RESULTS))


def error_line(error: ValueError | OSError) -> str:
    """The line with which a command ends at this error."""
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename} cannot be used ({error.strerror}): name another path."
    return f"error: {error}"


def check_alike(
    rows: Sequence[Row], allowed: Sequence[str], remedy: str = "name {} in --rows"
) -> None:
    """Raise ValueError where the rows differ in fields of the config that are not `allowed`.

    Args:
      remedy: what to do, with {} for "it" or "them".
    """
    differing = {}
    for field in _columns(rows):
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
    """What has to be said below a table of these rows, which were read from the paths.

    That runs were selected on the test set, that runs diverged, and that a folder holds runs that
    did not finish.
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


def in_order(value: Any) -> tuple[Any, ...]:
    """A key to sort values by: what is no number first, and then the numbers."""
    number = isinstance(value, int | float)
    return number, value if number else str(value)


def cell_text(value: Any) -> str:
    """A value as tables and figures show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_value(text: str) -> Any:
    """What `text` stands for: a number, None for "", a tuple or a bool; anything else is text."""
    if text == "":
        return None
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(text)
        except (ValueError, SyntaxError):
            continue
    return text


def as_row(config: Path) -> Row:
    """A run's config, without the fields that do not change what it computes."""
    return _config_row(read_config(config))


def _config_row(config: dict[str, Any]) -> Row:
    row: Row = {}
    for field, value in config.items():
        if field not in RESUMABLE:
            value = tuple(value) if isinstance(value, list) else value
            row[field] = None if value == "" else value
    return row


def _read_folder(folder: Path) -> dict[Path, Row]:
    rows = {}
    for result in sorted([*folder.glob("result.json"), *folder.glob("*/result.json")]):
        run = result.parent
        if (run / "config.json").exists():
            results = flatten(json.loads(result.read_text()))
            found = {name: results.get(name) for name in STORED}
            devices = results.get("devices")  # as in "4 x NVIDIA H100"
            found["devices"] = int(devices.split()[0]) if devices else None
            rows[run] = as_row(run / "config.json") | found
    return rows


def _kept_below(row: Row) -> Row:
    """KEPT_BELOW of a run, None where its density does not count all weights or it diverged.

    With density d, (e - (1 - d)) / d of the kept weights are small where e of all are.
    """
    unknown_share = row.get("sparsity.exclude") or row.get("test.loss", 0.0) is None
    density = None if unknown_share else row.get("density")
    found: Row = dict.fromkeys(KEPT_BELOW)
    for name, source in KEPT_BELOW.items():
        small = row.get(source)
        if density and small is not None:
            found[name] = max(0.0, (small - (1 - density)) / density)  # both are rounded
    return found


def _read_csv(path: Path) -> dict[Path, Row]:
    defaults = _config_row(flatten(default_config()))  # of fields that are newer than the file
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or ()
        except UnicodeDecodeError:
            columns = ()
        if "test.accuracy" not in columns:
            raise ValueError(f"{path} is no CSV of runs: it has no column test.accuracy.")
        return {
            # A name for the line, as it is said in an error: the header is line 1.
            Path(f"{path}, line {number}"): defaults
            | {field: parse_value(text) for field, text in row.items() if field not in RESUMABLE}
            for number, row in enumerate(reader, start=2)
        }


def _columns(rows: Sequence[Row]) -> list[str]:
    """The names in any of the rows: the config's first, and then the results."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name in RESULTS)


def _check_once(rows: Sequence[Row], places: Sequence[Path]) -> None:
    """Raise ValueError where two rows agree in the whole config, seed included."""
    seen: dict[str, Path] = {}
    for row, place in zip(rows, places, strict=True):
        config = str([value for name, value in row.items() if name not in RESULTS])
        if config in seen:
            raise ValueError(
                f"{seen[config]} and {place} have one config, seed included: name one of them."
            )
        seen[config] = place
