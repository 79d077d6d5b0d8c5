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
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cka_sr_jax._errors import unknown
from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.rows import (
    STORED,
    Row,
    check_numbers,
    check_once,
    columns_of,
    config_row,
    kept_below,
    read_csv,
)
from cka_sr_jax.analysis.run import REPORT_AGAIN, Run
from cka_sr_jax.models import default_options
from cka_sr_jax.report import read_metrics
from cka_sr_jax.report.metrics import damaged_lines
from cka_sr_jax.report.parse import parse_stored
from cka_sr_jax.training.config import flatten


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every finished run of the paths.

    Args:
      paths: runs' folders, folders that hold some, and JSON-lines files of `write_jsonl`.

    Raises:
      ValueError: a path has no finished run, or one with a damaged file.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        if path.is_file():
            found = _read_jsonl(path)
        else:
            found = [
                run._replace(
                    metrics=_read_metrics(folder / "metrics.jsonl"),
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
    check_once([_config_and_devices(run) for run in runs], [run.name for run in runs])
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
      ValueError: a path without a finished run; a file that is damaged; a result without a test
        loss; a run that occurs twice; no such field.
    """
    rows: list[Row] = []
    places: list[str] = []  # of each row
    for path in map(Path, paths):
        if path.is_file() and path.suffix != ".jsonl":
            found = read_csv(path)
        else:
            runs = _read_jsonl(path) if path.is_file() else _read_folder(path).values()
            found = {run.name: run_row(run) for run in runs}
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
    rows = [{name: _value(row, name) for name in names} | kept_below(row) for row in rows]
    check_once(rows, places)
    return rows


def _value(row: Row, name: str) -> Any:
    """The row's value, for an option of its model that it lacks the option's default."""
    value, option = row.get(name), name.removeprefix("model.options.")
    if value is not None or option == name:
        return value
    try:
        return default_options(str(row["model.name"])).get(option)
    except ValueError:  # of a model that is no more
        return None


def run_row(run: Run) -> Row:
    """The run's config, flat, its number of devices and its results.

    Raises:
      ValueError: a result without a test loss, or with what is no number.
    """
    results = flatten(run.result)
    if "test.loss" not in results:
        raise ValueError(
            f"{run.result_file} has no test.loss, as every run and lottery of images has: leave it "
            "out."
        )
    row = _config_and_devices(run) | {name: results.get(name) for name in STORED}
    ranks = [rank for name, rank in results.items() if name.startswith("effective_rank.")]
    if ranks and None not in ranks:
        row["effective_rank"] = sum(ranks) / len(ranks)
    matrix = run.cka_matrix
    if matrix is None and run.folder:
        matrix = _read_matrix(run.folder / "report" / "cka_matrix.csv")
    if near := _of_neighbors(matrix):
        row["cka_least_neighbors"], row["cka_most_neighbors"] = min(near), max(near)
    check_numbers(row, run.result_file)
    return row


def _of_neighbors(matrix: Mapping[str, Any] | None) -> list[float]:
    """The CKA of each two features of one stage that are next to each other."""
    if matrix is None:
        return []
    stages = [name.rpartition(".")[0] for name in matrix["features"]]
    return [
        matrix["values"][i][i + 1]
        for i, (one, two) in enumerate(itertools.pairwise(stages))
        if one == two
    ]


def _config_and_devices(run: Run) -> Row:
    devices, count = run.result.get("devices"), None
    if devices:
        count = re.match(r"(\d+) x ", str(devices))
        if count is None:
            raise ValueError(
                f"{run.result_file} has devices={devices!r}: expected a count and a kind, such as "
                "'4 x NVIDIA H100', so correct it or leave this run out."
            )
    return config_row(run.config) | {"devices": int(count[1]) if count else None}


def _read_folder(folder: Path) -> dict[Path, Run]:
    """The runs of a folder with their config and result alone, which is all that a table needs."""
    runs = {}
    for path in sorted([*folder.glob("result.json"), *folder.glob("*/result.json")]):
        at = path.parent
        if (at / "config.json").exists():
            config = _read_object(at / "config.json", "restore it, or leave its folder out")
            result = _read_object(path, "delete it and give the run's command again")
            runs[at] = Run(str(at), config, result, folder=at)
    return runs


def _read_object(path: Path, cure: str) -> dict[str, Any]:
    try:
        content = parse_stored(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, as it holds no JSON object: {cure}.")
    return content


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a finished run, which are whole and end with a line's end."""
    whole = not path.exists() or path.read_bytes().endswith(b"\n")
    if not whole or damaged_lines(path):
        raise ValueError(f"{path} is damaged or cut short: restore it, or leave this run out.")
    return read_metrics(path)


def _read_jsonl(path: Path) -> list[Run]:
    runs = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            run = Run(f"{path}, line {number}", **parse_stored(line))
            if not (isinstance(run.config, dict) and isinstance(run.result, dict)):
                raise TypeError
            runs.append(run)
        except (ValueError, TypeError):
            raise ValueError(
                f"line {number} of {path} is not a stored run: name a file that "
                "`python -m cka_sr_jax.analysis.runs` wrote."
            ) from None
    return runs


def _read_matrix(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    header, *rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines())) or [[]]
    try:
        values = np.array([row[1:] for row in rows], float)
    except ValueError:
        values = np.zeros(0)
    if not header[1:] or values.shape != (len(header) - 1, len(header) - 1):
        raise ValueError(f"{path} is damaged, as it holds no square matrix: {REPORT_AGAIN}.")
    return {"features": header[1:], "values": values.tolist()}


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
