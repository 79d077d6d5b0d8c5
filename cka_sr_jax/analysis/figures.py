"""Figures from the runs of a grid: what a config field, such as the penalty's beta, changes.

  python -m cka_sr_jax.analysis.figures heatmaps runs/GRID figure.png
  python -m cka_sr_jax.analysis.figures histograms runs/GRID figure.png
  python -m cka_sr_jax.analysis.figures curves runs/GRID figure.png

heatmaps: CKA between all features of the trained network. histograms: the kept weights of all
kernels together. curves: mean CKA within and across stages over training. Each shows one run for
every value of the field: the run with the lowest seed. Choose among the runs with --where, as in
--where seed=1 --where sparsity.density=0.05.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from cka_sr_jax._errors import unknown
from cka_sr_jax.analysis.commands import cell_text, check_alike, error_line, in_order
from cka_sr_jax.analysis.rows import SHARES, config_row, parse_value
from cka_sr_jax.analysis.run import Run, matrix_of
from cka_sr_jax.analysis.runs import load_runs
from cka_sr_jax.models import create_model, stacked_layers
from cka_sr_jax.report.figures import (
    BLUE,
    Figure,
    label_features,
    series,
    stage_boundaries,
    tidy,
    to_png,
)
from cka_sr_jax.sparsity import layers_of, leaf_paths

BINS = 201  # odd: the middle one is around 0


def runs_by_value(
    paths: Sequence[str | Path], field: str, where: Mapping[str, Any] | None = None
) -> dict[Any, Run]:
    """{value of a config field: its run with the lowest seed}, values in order.

    Args:
      paths: of `load_runs`.
      field: such as "penalty.beta".
      where: {config field: value} that the runs must have; others are left out.

    Raises:
      ValueError: no finished run; a field that the runs' configs do not have; runs that differ in
        a field other than this and the seed; values whose lowest seeds differ.
    """
    where = where or {}
    rows = [(config_row(run.config), run) for run in load_runs(paths)]
    for name in (field, *where):
        for row, _ in rows:
            if name not in row:
                raise ValueError(unknown("field of these runs:", name, row))
    rows = [(row, run) for row, run in rows if all(row[name] == where[name] for name in where)]
    if not rows:
        wanted = " and ".join(f"{name} = {value}" for name, value in where.items())
        raise ValueError(
            f"{', '.join(map(str, paths))} has no run with {wanted}: change or drop --where."
        )
    rows.sort(key=lambda pair: pair[0]["seed"])
    found: dict[Any, tuple[dict[str, Any], Run]] = {}
    for row, run in rows:
        found.setdefault(row[field], (row, run))
    remedy = "choose runs that agree in {} with --where"
    check_alike([row for row, _ in rows], allowed=[field, "seed"], remedy=remedy)
    check_alike([row for row, _ in found.values()], allowed=[field], remedy=remedy)
    return {value: found[value][1] for value in sorted(found, key=in_order)}


def draw_heatmaps(runs: Mapping[str, Run]) -> Figure:
    """A panel for each run, by its label: CKA between the features of the trained network.

    Raises:
      ValueError: a run whose report has no CKA matrix.
    """
    figure = Figure(figsize=(3.2 * len(runs) + 0.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (label, run) in zip(panels, runs.items(), strict=True):
        stored = matrix_of(run)
        names, matrix = stored["features"], np.array(stored["values"])
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap=colormaps["viridis"])
        groups = [name.rpartition(".")[0] for name in names]
        for i in stage_boundaries(groups):
            axes.axhline(i - 0.5, color="white", linewidth=1)
            axes.axvline(i - 0.5, color="white", linewidth=1)
        axes.set_title(label)
        label_features(axes, names, groups)
        axes.tick_params(axis="x", labelrotation=90)
        axes.label_outer()
    figure.colorbar(image, ax=panels, label="CKA (0 to 1)", shrink=0.8)
    return figure


def draw_histograms(runs: Mapping[str, Run]) -> Figure:
    """A panel for each run: how many kept weights of its kernels lie in each of 201 bins."""
    weights = {label: kept_weights(run) for label, run in runs.items()}
    limit = max(float(np.abs(values).max(initial=1e-12)) for values in weights.values())
    figure = Figure(figsize=(3.2 * len(runs) + 0.8, 3.2), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (label, values) in zip(panels, weights.items(), strict=True):
        axes.hist(values, bins=BINS, range=(-limit, limit))
        axes.set_title(label)
        axes.set_xlabel("weight")
        tidy(axes)
    panels[0].set_ylabel(f"kept weights per bin of {2 * limit / BINS:.2g}")
    return figure


def kept_weights(run: Run) -> np.ndarray:
    """All weights of a run's kernels that are not exactly 0, in one vector.

    Raises:
      ValueError: a run of a file, which holds no weights.
    """
    params = run.variables["params"]
    layers = layers_of(params, stacked=_stacked(run))
    kernels = [np.ravel(leaf) for path, leaf in leaf_paths(params) if path in layers]
    flat = np.concatenate(kernels)
    return flat[flat != 0]


def _stacked(run: Run) -> dict[str, int]:
    row, prefix = config_row(run.config), "model.options."
    options = {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)}
    return stacked_layers(create_model(str(row["model.name"]), 1, **options))


def draw_curves(runs: Mapping[str, Run]) -> Figure:
    """Mean CKA over epochs, a line per run: within stages and, if there are several, across them.

    Raises:
      ValueError: runs without a record of CKA.
    """
    names = {"cka_within_stage": "of one stage", "cka_cross_stage": "of two stages"}
    lines = {
        (name, label): points
        for name in names
        for label, run in runs.items()
        for split in ("validation", "test-selection")
        if (points := series(run.metrics, split, name))[0]
    }
    shown = [name for name in names if any(name == n for n, _ in lines)]
    if missing := [run.name for run in runs.values() if not run.metrics]:
        raise ValueError(
            f"{missing[0]} has no metrics over training, which metrics.jsonl holds: restore that "
            "file, or leave this run out."
        )
    if not shown:
        raise ValueError("these runs logged no CKA: they have no validation data or no features.")
    figure = Figure(figsize=(4.6 * len(shown), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for (drawn, label), points in lines.items():
            if drawn == name:
                axes.plot(*points, label=label, marker="o", ms=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"mean CKA of pairs of layers {names[name]}")
        axes.legend(frameon=False)
        tidy(axes)
    return figure


def draw_lines(lines: Mapping[str, Mapping[Any, Sequence[float]]], x: str, value: str) -> Figure:
    """Mean and standard deviation of the values at each x, a line for each label.

    The places on the x axis are equally spaced, since betas and densities span decades and
    include 0.

    Args:
      lines: {label: {place on the x axis: values}}.
      x: name of the x axis; value: name of the y axis.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    if len(lines) > 10:  # more than the default colors
        axes.set_prop_cycle(color=[colormaps["tab20"](i) for i in range(20)])
    places = sorted({place for line in lines.values() for place in line}, key=in_order)
    for label, line in lines.items():
        kept = [i for i, place in enumerate(places) if line.get(place)]
        values = [line[places[i]] for i in kept]
        axes.errorbar(
            kept,
            [float(np.mean(v)) for v in values],
            [float(np.std(v, ddof=1)) if len(v) > 1 else 0 for v in values],
            label=label, marker="o", ms=3, capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(places)), [cell_text(place) for place in places], parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(value)
    if len(lines) > 1:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(axes)
    return figure


def draw_differences(
    differences: Mapping[str, tuple[float, float]], title: str, measure: str
) -> Figure:
    """Paired differences with 95 % t intervals; a difference without one is an open circle.

    Args:
      differences: {label: (mean difference, half-width of its interval or NaN)}.
      title: over the figure; measure: a name in RESULTS, what is compared.
    """
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for row, (mean, width) in enumerate(differences.values()):
        unknown_width = math.isnan(width)
        axes.errorbar(
            mean, row, xerr=None if unknown_width else width, color=BLUE, fmt="o", ms=4, capsize=3,
            mfc="white" if unknown_width else BLUE,
        )  # fmt: skip
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(differences)), list(differences), parse_math=False)
    axes.margins(y=0.5 / len(differences))
    axes.invert_yaxis()
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(f"difference of {measure}" + (" (points)" if measure in SHARES else ""))
    tidy(axes)
    return figure


def write_png(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG image and make its folder.

    Raises:
      ValueError: the file's name does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"figures are PNG images, and {path} is not named so: end it in .png.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(to_png(figure))


DRAW = {"heatmaps": draw_heatmaps, "histograms": draw_histograms, "curves": draw_curves}


def _field_and_value(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIELD=VALUE, such as seed=1.")
    return field, parse_value(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=DRAW)
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs, JSON-lines files")
    parser.add_argument("png", help="the file to write")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        type=_field_and_value,
        metavar="FIELD=VALUE",
        help="use only runs with this value of the config's field; may be repeated",
    )
    parser.add_argument(
        "--field", default="penalty.beta", help="of the config: one run for each value"
    )
    options = parser.parse_args(arguments)
    name = options.field.rpartition(".")[2]
    try:
        runs = runs_by_value(options.paths, options.field, dict(options.where))
        figure = DRAW[options.kind]({f"{name} {cell_text(v)}": run for v, run in runs.items()})
        write_png(figure, options.png)
        print(f"{options.png} shows", ", ".join(run.name for run in runs.values()))
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
