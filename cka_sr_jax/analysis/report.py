"""One page that compares runs: a table to sort, their curves in one figure, their CKA maps.

  cka-sr report runs/digits_cka --output=comparison.html

The paths are folders of a grid or of runs, and JSON-lines files of runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from cka_sr_jax.analysis.commands import cell_text, error_line, in_order, notes
from cka_sr_jax.analysis.figures import draw_heatmaps
from cka_sr_jax.analysis.rows import SHARES, Row, columns_of, config_row
from cka_sr_jax.analysis.runs import Run, load_runs, run_row
from cka_sr_jax.report.figures import Figure, series, tidy, to_png
from cka_sr_jax.report.html import STYLE, figure_block

# What the table shows of a run, if any run has it, and how it is headed.
SHOWN = {
    "test.accuracy": "test accuracy",
    "validation.accuracy": "validation accuracy",
    "density": "density",
    "cka_within_stage": "within-stage CKA",
    "explored": "explored",
    "training_flops": "training FLOPs",
    "wall_seconds": "training time (s)",
}
# {(split, name in metrics.jsonl): label of the axis}
CURVES = {
    ("train", "loss"): "training loss (nats)",
    ("validation", "accuracy"): "validation accuracy",
    ("validation", "cka_within_stage"): "mean CKA within a stage",
    ("masks", "churn"): "churn of the masks",
}
BUTTON = """
.sortable button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: left; }
.sortable :is(th, td) { white-space: nowrap; }
"""
SORT = """
document.querySelectorAll("table.sortable th").forEach((th, column) => {
  th.firstChild.onclick = () => {
  const body = th.closest("table").tBodies[0], down = th.dataset.down !== "1";
  th.dataset.down = down ? "1" : "";
  const key = row => row.cells[column].dataset.value;
  const sign = down ? -1 : 1, rows = [...body.rows], missing = rows.filter(row => key(row) === "");
  const order = rows.every(row => !isNaN(key(row)))
    ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
  rows.filter(row => key(row) !== "").sort((a, b) => sign * order(a, b)).concat(missing)
    .forEach(row => body.append(row));
}});
"""


def labels_of(runs: Sequence[Run]) -> dict[str, Run]:
    """{label: run}, each labeled by the fields in which the runs differ, in the order of these.

    A single run, and runs of one config, are labeled by their names.
    """
    fields = differing_fields(runs)
    rows = [(config_row(run.config), run) for run in runs]
    rows.sort(key=lambda pair: [in_order(pair[0].get(field)) for field in fields])
    labels: dict[str, Run] = {}
    for row, run in rows:
        named = [f"{f.rpartition('.')[2]} {cell_text(row.get(f))}" for f in fields]
        label = ", ".join(named) or Path(run.name).name
        labels[label if label not in labels else f"{label} ({run.name})"] = run
    return labels


def differing_fields(runs: Sequence[Run]) -> list[str]:
    """The config fields in which runs differ, as a table has them."""
    rows = [config_row(run.config) for run in runs]
    return [f for f in columns_of(rows) if len({str(row.get(f)) for row in rows}) > 1]


def draw_overlay(runs: Mapping[str, Run]) -> Figure | None:
    """A panel for each of CURVES that some run logged, with a line per run; None without any.

    Args:
      runs: by label.
    """
    found = {
        curve: lines
        for curve in CURVES
        if (lines := {label: points for label, run in runs.items()
                      if (points := series(run.metrics, *curve))[0]})
    }  # fmt: skip
    if not found:
        return None
    height = 3.2 * len(found) + 0.1 * len(runs)  # the last part is for the names
    figure = Figure(figsize=(7, height), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    colors = dict(zip(runs, colormaps["turbo"](np.linspace(0.05, 0.95, len(runs))), strict=True))
    for axes, (curve, lines) in zip(panels, found.items(), strict=True):
        for label, points in lines.items():
            marker = "o" if len(points[0]) == 1 else ""  # a line alone would not show it
            axes.plot(*points, color=colors[label], label=label, marker=marker, lw=1.4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(CURVES[curve])
        tidy(axes)
    lines_of = {line.get_label(): line for axes in panels for line in axes.lines}
    shown = [label for label in runs if label in lines_of]
    columns = 2 if len(shown) > 4 else 1
    figure.legend([lines_of[label] for label in shown], shown, loc="outside lower center",
                  ncols=columns, fontsize=8, frameon=False)  # fmt: skip
    return figure


def render_comparison(runs: Sequence[Run], paths: Sequence[str | Path] = ()) -> str:
    """The page as one HTML text, which needs no other file.

    Args:
      runs: of `load_runs`.
      paths: where they were read from, for the note on runs that did not finish.
    """
    labeled = labels_of(runs)
    overlay = draw_overlay(labeled)
    maps = {label: run for label, run in labeled.items() if run.cka_matrix is not None}
    count = f"{len(runs)} runs" if len(runs) != 1 else "One run"
    parts = [
        f"<h1>{count} compared</h1>",
        "<h2>Results</h2>",
        "<p class='soft'>Click on a column's name to sort by it.</p>",
        _table(labeled),
        *(f"<p class='warning' role='note'>{escape(note)}</p>"
          for note in notes([run_row(run) for run in runs], paths)),
        "<h2>Curves</h2>",
        figure_block(
            to_png(overlay), "Curves of all runs",
            "From metrics.jsonl: the training loss includes beta times the penalty; churn is how "
            "much an update changed the masks.",
        ) if overlay else "<p class='soft'>These runs logged no metrics.</p>",
    ]  # fmt: skip
    if maps:
        parts.append("<h2>CKA between the features of the trained networks</h2>")
        parts += [
            figure_block(to_png(draw_heatmaps(dict([item]))), f"CKA map, {item[0]}", item[0])
            for item in maps.items()
        ]
        start = len(parts) - len(maps)
        parts[start:] = [f"<div class='pair'>{''.join(parts[start:])}</div>"]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{count} compared</title>
<style>{STYLE}{BUTTON}</style>
</head>
<body>
{chr(10).join(parts)}
<script>{SORT}</script>
</body>
</html>
"""


def _table(labeled: Mapping[str, Run]) -> str:
    rows: list[Row] = [run_row(run) for run in labeled.values()]
    fields = differing_fields(list(labeled.values()))
    points = [str([row.get(field) for field in fields]) for row in rows]
    shown = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    first = [] if len(set(points)) == len(rows) > 1 else ["run"]
    head = "".join(
        f"<th scope='col'><button>{escape(name)}</button></th>"
        for name in (*first, *fields, *map(_title, shown))
    )
    lines = []
    for label, row in zip(labeled, rows, strict=True):
        cells = [(None, label)] if first else []
        cells += [(row.get(field), cell_text(row.get(field))) for field in fields]
        cells += [(row.get(name), _value(name, row.get(name))) for name in shown]
        text = "".join(
            f"<td data-value='{escape(str(text if value is None else value), quote=True)}'>"
            f"{escape(text)}</td>"
            for value, text in cells
        )
        lines.append(f"<tr>{text}</tr>")
    body = "\n".join(lines)
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _title(name: str) -> str:
    return f"{SHOWN[name]} (%)" if name in SHARES else SHOWN[name]


def _value(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in SHARES:
        return f"{100 * value:.2f}"
    return f"{value:.3f}" if name.startswith("cka") else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs, or files of runs")
    parser.add_argument("--output", default="comparison.html", help="the page to write")
    options = parser.parse_args(arguments)
    try:
        page = render_comparison(load_runs(options.paths), options.paths)
        Path(options.output).write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
    print(f"Report: {options.output}")


if __name__ == "__main__":
    main()
