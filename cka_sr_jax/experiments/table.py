"""Tables from the results of many runs: means, deviations, and the runs themselves as CSV.

  python -m cka_sr_jax.experiments.table runs/rules --rows=sparsity.rule --columns=sparsity.density

The arguments are folders of a grid, or CSV files that this wrote before.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cka_sr_jax._errors import unknown
from cka_sr_jax.experiments.figures import draw_lines
from cka_sr_jax.training.config import flatten
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


def summary_table(
    rows: Sequence[Row],
    by_row: Sequence[str],
    by_column: str | None = None,
    value: str = "test.accuracy",
    scale: float = 100.0,
) -> str:
    """A Markdown table of mean +- sample standard deviation (runs) of `scale` times a value.

    Runs without the value, such as "explored" of fixed masks, leave their cell empty.

    Args:
      rows: of `read_runs`.
      by_row: fields whose combinations are the rows.
      by_column: field whose values are the columns; None: one column.
      value: a name in RESULTS.

    Raises:
      ValueError: runs of one cell differ in more than their seed.
    """
    cells = cell_values(rows, by_row, by_column, value, scale)
    columns = sorted(
        {column for line in cells.values() for column in line},
        key=lambda c: (isinstance(c, int | float), c if isinstance(c, int | float) else str(c)),
        reverse=True,
    )
    header = [*(field.rpartition(".")[2] for field in by_row), *map(_text, columns)]
    lines = [header, ["---"] * len(by_row) + ["---:"] * len(columns)]
    for key, line in cells.items():
        values = [_mean_and_deviation(line.get(column, [])) for column in columns]
        lines.append([*map(_text, key), *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell_values(
    rows: Sequence[Row],
    by_row: Sequence[str],
    by_column: str | None = None,
    value: str = "test.accuracy",
    scale: float = 100.0,
) -> dict[tuple[Any, ...], dict[Any, list[float]]]:
    """{row: {column: values of its runs}}; arguments and errors as `summary_table`."""
    groups: dict[tuple[Any, ...], dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = tuple(row.get(field) for field in by_row)
        groups[key][row.get(by_column) if by_column else value].append(row)
    cells: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
    for key, columns in groups.items():
        cells[key] = {}
        for column, runs in columns.items():
            check_alike(runs, allowed=["seed"])
            cells[key][column] = [scale * float(r[value]) for r in runs if r[value] is not None]
    return cells


def check_alike(rows: Sequence[Row], allowed: Sequence[str]) -> None:
    """Raise ValueError where the rows differ in a field of the config that is not `allowed`."""
    for field in rows[0]:
        values = {str(row.get(field)) for row in rows}
        if field not in (*RESULTS, *allowed) and len(values) > 1:
            raise ValueError(
                f"runs that are compared differ in {field} ({', '.join(sorted(values))}): name it "
                "in --rows."
            )


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} ({len(values)})"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read_folder(folder: Path) -> list[Row]:
    rows = []
    for result in sorted(folder.glob("*/result.json")):
        if not (result.parent / "config.json").exists():
            continue
        config = flatten(json.loads((result.parent / "config.json").read_text()))
        results = flatten(json.loads(result.read_text()))
        kept = {field: value for field, value in config.items() if field not in PLACES}
        rows.append({**kept, **{name: results.get(name) for name in RESULTS}})
    return rows


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid, or CSV files")
    parser.add_argument("--rows", default="sparsity.rule", help="fields, separated by commas")
    parser.add_argument("--columns", help="the field that makes the columns")
    parser.add_argument("--value", default="test.accuracy", choices=RESULTS)
    parser.add_argument(
        "--scale", type=float, default=100.0, help="times the value: 100 is percent"
    )
    parser.add_argument("--csv", help="also write every run to this file")
    parser.add_argument("--png", help="also draw the table to this file")
    options = parser.parse_args(arguments)
    by_row = options.rows.split(",")
    fields = [*by_row, options.columns] if options.columns else by_row
    try:
        rows = read_runs(options.paths, keep=fields)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if options.csv:
        write_csv(rows, options.csv)
    for field in fields:
        if not any(field in row for row in rows):
            sys.exit("error: " + unknown("field of these runs:", field, rows[0]))
    shown = (rows, by_row, options.columns, options.value, options.scale)
    try:
        print(summary_table(*shown))
        if options.png:
            cells = cell_values(*shown)
            lines = {" ".join(map(_text, key)): line for key, line in cells.items()}
            label = f"{options.value} x {options.scale:g}"
            Path(options.png).write_bytes(draw_lines(lines, options.columns or "", label))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
