"""Finished runs on disk: a run's folder, a JSON-lines file of whole runs, a CSV of their results.

Each command of this package takes folders of runs and these files. `table --csv` and `paired --csv`
write a CSV, which holds each run's config and results in one row. To keep what the figures show
too, the metrics over training and the matrix of CKA, collect the runs of a grid in a JSON-lines
file:

  python -m cka_sr_jax.analysis.runs runs/GRID results/GRID.jsonl
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cka_sr_jax._errors import unknown
from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.rows import (
    KEPT_BELOW,
    RESULTS,
    STORED,
    Row,
    columns_of,
    config_row,
    kept_below,
    parse_value,
)
from cka_sr_jax.report import read_metrics
from cka_sr_jax.training.config import RESUMABLE, flatten


class Run(NamedTuple):
    """A finished run.

    Attributes:
      name: its folder, or its file and line, for messages.
      config: of config.json, nested.
      result: of result.json, nested.
      metrics: the records of metrics.jsonl, in order; none if it is not stored.
      cka_matrix: {"features": L names, "values": L lists of L}, the CKA between the features of
        the trained network; None if it is not stored.
      folder: where its checkpoints are; None for a run of a JSON-lines file.
    """

    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    cka_matrix: Mapping[str, Any] | None = None
    folder: Path | None = None


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every finished run of the paths.

    Args:
      paths: runs' folders, folders that hold some, and JSON-lines files of `write_jsonl`.

    Raises:
      ValueError: a path has no finished run.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        if path.is_file():
            found = _read_jsonl(path)
        else:
            found = [
                run._replace(
                    metrics=read_metrics(folder / "metrics.jsonl"),
                    cka_matrix=_read_matrix(folder / "report" / "cka_matrix.csv"),
                )
                for folder, run in _read_folder(path).items()
            ]
        if not found:
            raise ValueError(f"{path} holds no finished run: name a run's folder or a grid's.")
        runs += found
    return runs


def write_jsonl(runs: Iterable[Run], path: str | Path) -> None:
    """Write a new file with a line for each run, all numbers in full; weights are not stored.

    Raises:
      ValueError: the file exists; a run that occurs twice.
    """
    runs = list(runs)
    if Path(path).exists():
        raise ValueError(
            f"{path} exists and would be overwritten: name a new file, after the runs to store."
        )
    _check_once([_config_and_devices(run) for run in runs], [run.name for run in runs])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        for run in runs:
            stored: dict[str, Any] = {"config": run.config, "result": run.result}
            if run.metrics:
                stored["metrics"] = run.metrics
            if run.cka_matrix:
                stored["cka_matrix"] = run.cka_matrix
            file.write(json.dumps(stored) + "\n")


def read_runs(paths: Iterable[str | Path], fields: Sequence[str] = ()) -> list[Row]:
    """One row for each finished run: its whole config, its number of "devices", and RESULTS.

    The row leaves out config fields that do not change what a run computes, such as `data.dir`.
    It has the number of devices, since each device has its own BatchNorm statistics and CKA
    samples. None and "" are both None.

    Args:
      paths: runs' folders, folders that hold some, JSON-lines files and CSV files of `write_csv`.
      fields: config fields that the runs must have.

    Raises:
      ValueError: a path without a finished run; a run that occurs twice; no such field.
    """
    rows: list[Row] = []
    places: list[str] = []  # of each row
    for path in map(Path, paths):
        if path.is_file() and path.suffix != ".jsonl":
            found = _read_csv(path)
        else:
            runs = _read_jsonl(path) if path.is_file() else _read_folder(path).values()
            found = {run.name: _run_row(run) for run in runs}
        if not found:
            raise ValueError(
                f"{path} holds no finished run: name a run's folder, a grid's, or a CSV."
            )
        rows += found.values()
        places += found
    names = columns_of(rows)
    for field in fields:
        if field not in names:
            raise ValueError(unknown("field of these runs:", field, names))
    rows = [{name: row.get(name) for name in names} | kept_below(row) for row in rows]
    _check_once(rows, places)
    return rows


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """The rows as CSV, numbers with every digit; reading them computes KEPT_BELOW again."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        names = [name for name in columns_of(rows) if name not in KEPT_BELOW]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _run_row(run: Run) -> Row:
    results = flatten(run.result)
    return _config_and_devices(run) | {name: results.get(name) for name in STORED}


def _config_and_devices(run: Run) -> Row:
    devices = run.result.get("devices")  # as in "4 x NVIDIA H100"
    return config_row(run.config) | {"devices": int(devices.split()[0]) if devices else None}


def _read_folder(folder: Path) -> dict[Path, Run]:
    """The runs of a folder with their config and result alone, which is all that a table needs."""
    runs = {}
    for path in sorted([*folder.glob("result.json"), *folder.glob("*/result.json")]):
        at = path.parent
        if (at / "config.json").exists():
            config, result = (json.loads(file.read_text()) for file in (at / "config.json", path))
            runs[at] = Run(str(at), config, result, folder=at)
    return runs


def _read_jsonl(path: Path) -> list[Run]:
    runs = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            runs.append(Run(f"{path}, line {number}", **json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(
                f"line {number} of {path} is not a stored run: name a file that "
                "`python -m cka_sr_jax.analysis.runs` wrote."
            ) from None
    return runs


def _read_matrix(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return {"features": header[1:], "values": np.array([r[1:] for r in rows], float).tolist()}


def _read_csv(path: Path) -> dict[str, Row]:
    defaults = config_row({})  # of fields that are newer than the file
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or ()
        except UnicodeDecodeError:
            columns = ()
        if "test.accuracy" not in columns:
            raise ValueError(
                f"{path} is not a CSV of runs, since it has no column test.accuracy: name one that "
                "`--csv` wrote."
            )
        return {
            f"{path}, line {number}": defaults
            | {field: parse_value(text) for field, text in row.items() if field not in RESUMABLE}
            for number, row in enumerate(reader, start=2)  # the header is line 1
        }


def _check_once(rows: Sequence[Row], places: Sequence[str]) -> None:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect runs in a JSON-lines file."""
    parser = argparse.ArgumentParser(description="Collect finished runs in a JSON-lines file.")
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs")
    parser.add_argument("jsonl", help="the file to write, which must be new")
    options = parser.parse_args(arguments)
    try:
        runs = load_runs(options.paths)
        write_jsonl(runs, options.jsonl)
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
    print(f"{options.jsonl} holds {len(runs)} runs.")


if __name__ == "__main__":
    main()
