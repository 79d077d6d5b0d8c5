"""Tables from the results of many runs: means, deviations, and the runs themselves as CSV.

  python -m cka_sr_jax.analysis.table runs/rules --rows=sparsity.rule --columns=sparsity.density

The paths are folders of runs, JSON-lines files and CSV files that --csv wrote.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cka_sr_jax.analysis.commands import (
    cell_text,
    check_alike,
    check_result,
    error_line,
    in_order,
    notes,
    row_fields,
)
from cka_sr_jax.analysis.figures import draw_lines, write_png
from cka_sr_jax.analysis.rows import RESULTS, SHARES, Row, write_csv
from cka_sr_jax.analysis.runs import read_runs
from cka_sr_jax.report import markdown_table

Cells = Mapping[tuple[Any, ...], Mapping[Any, Sequence[float]]]  # {row: {column: values of runs}}


def summary_table(cells: Cells, by_row: Sequence[str]) -> str:
    """A Markdown table whose cells are "mean ± sample standard deviation (number of runs)".

    Args:
      cells: of `cell_values`.
      by_row: the fields whose combinations are the rows, as for `cell_values`.
    """
    columns = sorted({column for line in cells.values() for column in line}, key=in_order)
    header = [*(field.rpartition(".")[2] for field in by_row), *map(cell_text, columns)]
    rows = []
    for key, line in cells.items():
        values = [_mean_and_deviation(line.get(column, [])) for column in columns]
        rows.append([*map(cell_text, key), *values])
    return markdown_table(header, rows, "l" * len(by_row) + "r" * len(columns))


def cell_values(
    rows: Sequence[Row],
    by_row: Sequence[str],
    by_column: str | None = None,
    value: str = "test.accuracy",
    scale: float = 100.0,
) -> Cells:
    """`scale` times a value of each run, by row and column of a table.

    A cell is empty if its runs do not have the value, such as "explored" for fixed masks.

    Args:
      rows: of `read_runs`.
      by_row: fields whose combinations are the rows.
      by_column: field whose values are the columns; None: one column.
      value: a name in RESULTS.

    Raises:
      ValueError: runs of one cell differ in more than their seed.
    """
    groups: dict[tuple[Any, ...], dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = tuple(row.get(field) for field in by_row)
        groups[key][row.get(by_column) if by_column else value].append(row)
    cells: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
    for key, columns in sorted(groups.items(), key=lambda item: [*map(in_order, item[0])]):
        cells[key] = {}
        for column, runs in columns.items():
            check_alike(runs, allowed=["seed"])
            cells[key][column] = [scale * float(r[value]) for r in runs if r.get(value) is not None]
    return cells


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} ({len(values)})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs, or files")
    parser.add_argument("--rows", default="sparsity.rule", help="fields, separated by commas")
    parser.add_argument("--columns", help="the field that makes the columns")
    parser.add_argument("--value", default="test.accuracy", help=f"one of {', '.join(RESULTS)}")
    parser.add_argument(
        "--scale",
        type=float,
        help="factor for the value; default 100 (percent) for accuracies and shares, else 1",
    )
    parser.add_argument("--csv", help="also write every run to this file")
    parser.add_argument("--png", help="also draw the table to this file")
    options = parser.parse_args(arguments)
    try:
        by_row = row_fields(options.rows, options.columns)
        fields = [*by_row, options.columns] if options.columns else by_row
        check_result(options.value)
        rows = read_runs(options.paths, fields)
        if options.csv:
            write_csv(rows, options.csv)
        scale = options.scale or (100.0 if options.value in SHARES else 1.0)
        cells = cell_values(rows, by_row, options.columns, options.value, scale)
        print(*[summary_table(cells, by_row), *notes(rows, options.paths)], sep="\n\n")
        if options.png:
            lines = {" ".join(map(cell_text, key)): line for key, line in cells.items()}
            x = options.columns
            if not x:  # the rows stand side by side
                lines, x = {"": {n: line[options.value] for n, line in lines.items()}}, options.rows
            label = options.value if scale == 1 else f"{options.value} x {scale:g}"
            write_png(draw_lines(lines, x, label), options.png)
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
