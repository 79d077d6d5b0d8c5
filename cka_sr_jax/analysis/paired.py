"""Tables of paired comparisons: what a change does to runs of the same seed.

  python -m cka_sr_jax.analysis.paired runs/GRID --field=penalty.beta --baseline=0 \\
    --rows=sparsity.rule,sparsity.density

For each seed, the other seeds' validation accuracy chooses the value of the field to compare with
the baseline (see `comparison`). --value=V compares one value, --each all of them side by side. The
paths are folders of runs, JSON-lines files and CSV files.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cka_sr_jax.analysis.commands import (
    cell_text,
    check_result,
    error_line,
    in_order,
    notes,
    row_fields,
)
from cka_sr_jax.analysis.comparison import CHOOSE, Comparison, comparisons, pairs_needed
from cka_sr_jax.analysis.figures import draw_differences, write_png
from cka_sr_jax.analysis.rows import RESULTS, SHARES, parse_value, write_csv
from cka_sr_jax.analysis.runs import read_runs
from cka_sr_jax.report import markdown_table

Comparisons = Mapping[tuple[Any, ...], Comparison | None]


def paired_table(
    found: Comparisons,
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    measure: str = "test.accuracy",
) -> str:
    """A Markdown table with a row for each of the `comparisons`.

    Args:
      found: of `comparisons` with the same other arguments.
      by_row: the fields whose values are its keys.
      field: what differs in a pair; baseline: its value to compare with.
      measure: what is compared.
    """
    name = field.rpartition(".")[2]
    header = [
        f"{name} {cell_text(baseline)}",
        f"chosen {name} (pairs)",
        "candidates",
        measure.removeprefix("test."),
        "difference (95 % t)",
        "95 % bootstrap",
        "pairs",
        "wins/ties/losses",
    ]
    lines = {key: _cells(c) if c else ["-"] * len(header) for key, c in found.items()}
    return _table(by_row, header, lines)


def table_of_each(
    found: Mapping[Any, Comparisons],
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    measure: str = "test.accuracy",
) -> str:
    """A Markdown table of differences with a column for each value of the field.

    The baseline's column is its mean over the pairs of the first value that has some.

    Args:
      found: {value: `comparisons` with that value}.
      by_row, field, baseline, measure: as in `paired_table`.
    """
    name = field.rpartition(".")[2]
    measured = measure.removeprefix("test.") + (" (%)" if measure in SHARES else "")
    header = [
        f"{measured} at {name} {cell_text(baseline)}",
        *(f"{name} {cell_text(v)} (pairs)" for v in found),
    ]
    lines = {}
    for key in next(iter(found.values())):
        compared = [comparisons_of[key] for comparisons_of in found.values()]
        first = next((c for c in compared if c), None)
        cells = [f"{_difference(c)} ({c.pairs})" if c else "-" for c in compared]
        lines[key] = [f"{first.baseline:.2f}" if first else "-", *cells]
    return _table(by_row, header, lines)


def pair_notes(found: Comparisons) -> list[str]:
    """The notes that belong below a table of `comparisons`."""
    lines = []
    for key, c in found.items():
        if c and c.left_out:
            lines.append(
                f"{_name(key)}: {c.left_out} seeds left out, of which some value has no run or no "
                "measure."
            )
        if c and c.pairs == 1 and c.candidates > 1:
            lines.append(f"{_name(key)}: chosen by the pair's own validation data, so too high.")
    return lines


def spread_notes(found: Comparisons) -> list[str]:
    """A note for each comparison whose pairs differ too little for its test set to show."""
    return [f"{_name(key)}: {_coarse(c)}" for key, c in found.items() if c and c.coarse]


def _coarse(c: Comparison) -> str:
    if not c.test_images:
        return (
            f"all {c.pairs} differences are equal, so they do not show their spread: too few "
            "pairs, or too few test images, to tell."
        )
    image = 100 / c.test_images
    spread = (
        f"the {c.pairs} differences vary by less than one of {c.test_images} test images "
        f"({image:.2f} points), which the interval takes for their deviation"
    )
    if abs(c.difference) > c.t_interval:
        return f"{spread}."
    # A mean of 0 up to rounding asks about one image.
    gain = abs(c.difference) if abs(c.difference) > 1e-9 else image
    return (
        f"the test set is too small to tell: {spread}. To tell a gain of {gain:.2f} points takes "
        f"{pairs_needed(image, gain)} pairs, or more test images."
    )


def _table(
    by_row: Sequence[str], header: Sequence[str], lines: Mapping[tuple[Any, ...], Sequence[str]]
) -> str:
    names = [part.rpartition(".")[2] for part in by_row]
    rows = [[*map(cell_text, key), *cells] for key, cells in lines.items()]
    return markdown_table([*names, *header], rows, "l" * len(names) + "r" * len(header))


def _name(key: tuple[Any, ...]) -> str:
    return " ".join(map(cell_text, key))


def _difference(c: Comparison) -> str:
    if math.isnan(c.t_interval):
        return f"{c.difference:+.2f}" + (" ± ?" if c.pairs > 1 else "")
    return f"{c.difference:+.2f} ± {c.t_interval:.2f}"


def _cells(c: Comparison) -> list[str]:
    counts = [f"{cell_text(value)} ({count})" for value, count in c.chosen.items()]
    if len(c.chosen) == 1:
        counts = [f"{cell_text(value)} ({c.pairs} of {c.pairs})" for value in c.chosen]
    return [
        f"{c.baseline:.2f}",
        ", ".join(counts),
        str(c.candidates),
        f"{c.changed:.2f}",
        _difference(c),
        "" if math.isnan(c.bootstrap[0]) else f"{c.bootstrap[0]:+.2f} to {c.bootstrap[1]:+.2f}",
        str(c.pairs),
        f"{c.wins}/{c.ties}/{c.losses}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of paired comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs, or files")
    parser.add_argument("--field", default="penalty.beta", help="what differs in a pair")
    parser.add_argument("--baseline", type=parse_value, default=0.0)
    values = parser.add_mutually_exclusive_group()
    values.add_argument(
        "--value",
        type=parse_value,
        default=CHOOSE,
        help="compare this value, not the validated one",
    )
    values.add_argument("--each", action="store_true", help="compare each value, side by side")
    parser.add_argument(
        "--measure", default="test.accuracy", help=f"what is compared: {', '.join(RESULTS)}"
    )
    parser.add_argument("--rows", default="sparsity.density", help="fields, separated by commas")
    parser.add_argument("--csv", help="also write every run to this file")
    parser.add_argument("--png", help="also draw the differences to this file")
    options = parser.parse_args(arguments)
    field, baseline, measure = options.field, options.baseline, options.measure
    try:
        by_row = row_fields(options.rows, field)
        check_result(measure)
        rows = read_runs(options.paths, [field, *by_row])
        if options.csv:
            write_csv(rows, options.csv)
        compared = partial(comparisons, rows, by_row, field, baseline, measure=measure)
        if options.each:
            others = sorted({row[field] for row in rows} - {baseline}, key=in_order)
            each = {value: compared(value) for value in others}
            found = {(*key, value): c for value, part in each.items() for key, c in part.items()}
        else:
            found = compared(options.value)
        if not any(found.values()):
            there = ", ".join(map(str, sorted({row[field] for row in rows}, key=in_order)))
            another = "another" if options.value is CHOOSE else options.value
            raise ValueError(
                f"there are runs at {field} = {there}: a comparison needs {baseline} and "
                f"{another}, with the same seeds, and {measure} of them."
            )
        if options.each:
            parts = [table_of_each(each, by_row, field, baseline, measure)]
        else:
            parts = [paired_table(found, by_row, field, baseline, measure), *pair_notes(found)]
        print(*parts, *spread_notes(found), *notes(rows, options.paths), sep="\n\n")
        if options.png:
            drawn = {
                f"{_name(key)} ({c.pairs} pairs)": (c.difference, c.t_interval)
                for key, c in found.items()
                if c
            }
            against = f"{field}, against {cell_text(baseline)}"
            write_png(draw_differences(drawn, against, measure), options.png)
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
