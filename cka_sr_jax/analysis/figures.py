"""Figures from the runs of a grid: what a field, such as the penalty's beta, does to the networks.

  python -m cka_sr_jax.analysis.figures heatmaps runs/GRID figure.png
  python -m cka_sr_jax.analysis.figures histograms runs/GRID figure.png
  python -m cka_sr_jax.analysis.figures curves runs/GRID figure.png

heatmaps: CKA between all features of the trained network. histograms: the kept weights of all
kernels together. curves: mean CKA within and across stages over training. Each shows one run for
every value of the field, that of the lowest seed; choose others with a shell pattern,
runs/GRID/*seed=1*.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from cka_sr_jax._errors import unknown
from cka_sr_jax.analysis.runs import SHARES, as_row, cell_text, check_alike, error_line, in_order
from cka_sr_jax.report import read_metrics
from cka_sr_jax.report.figures import BLUE, label_features, series, stage_boundaries, tidy, to_png
from cka_sr_jax.sparsity.masks import maskable_leaves
from cka_sr_jax.training import load_variables

BINS = 201  # odd: the middle one is around 0


def runs_by_value(paths: Sequence[str | Path], field: str) -> dict[Any, Path]:
    """{value of the config's field: folder of its run with the lowest seed}, values in order.

    Args:
      paths: folders of grids, or of runs.

    Raises:
      ValueError: no finished run; a field that the runs' configs do not have; runs that differ in
        a field other than this and the seed; values whose lowest seeds differ.
    """
    folders = [
        run
        for path in map(Path, paths)
        for run in ([path] if (path / "result.json").exists() else sorted(path.glob("*")))
        if (run / "result.json").exists() and (run / "config.json").exists()
    ]
    if not folders:
        raise ValueError(f"{', '.join(map(str, paths))}: no finished run there.")
    found: dict[Any, Path] = {}
    configs = {run: as_row(run / "config.json") for run in folders}
    for run, config in sorted(configs.items(), key=lambda item: item[1]["seed"]):
        if field not in config:
            raise ValueError(unknown("field of these runs:", field, config))
        found.setdefault(config[field], run)
    remedy = "name runs that agree in {}, such as with a shell pattern"
    check_alike(list(configs.values()), allowed=[field, "seed"], remedy=remedy)
    check_alike([configs[run] for run in found.values()], allowed=[field], remedy=remedy)
    return {value: found[value] for value in sorted(found, key=in_order)}


def draw_heatmaps(runs: Mapping[str, Path]) -> Figure:
    """A panel for each run: CKA between its features, read from its report/cka_matrix.csv.

    Raises:
      ValueError: a run whose report has no CKA matrix.
    """
    figure = Figure(figsize=(3.2 * len(runs) + 0.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (label, run) in zip(panels, runs.items(), strict=True):
        path = run / "report" / "cka_matrix.csv"
        if not path.exists():
            raise ValueError(f"{run} has no report/cka_matrix.csv: its model sows no two features.")
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        matrix = np.array([row[1:] for row in rows], float)
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap=colormaps["viridis"])
        names = header[1:]
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


def draw_histograms(runs: Mapping[str, Path]) -> Figure:
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


def kept_weights(run: Path) -> np.ndarray:
    """All weights of a run's kernels that are not exactly 0, in one vector."""
    kernels = maskable_leaves(load_variables(run)["params"]).values()
    flat = np.concatenate([np.ravel(kernel) for kernel in kernels])
    return flat[flat != 0]


def draw_curves(runs: Mapping[str, Path]) -> Figure:
    """Mean CKA over epochs within stages and, where there are several, across; a line for a run."""
    names = {"cka_within_stage": "of one stage", "cka_cross_stage": "of two stages"}
    records = {label: read_metrics(run / "metrics.jsonl") for label, run in runs.items()}
    lines = {
        (name, label): points
        for name in names
        for label, found in records.items()
        for split in ("validation", "test-selection")
        if (points := series(found, split, name))[0]
    }
    shown = [name for name in names if any(name == n for n, _ in lines)]
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

    The places stand at equal distances: betas and densities span decades, and 0 is among them.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    if len(lines) > 10:  # or colors would repeat
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
    """Paired differences with 95 % t intervals; a single pair is an open circle."""
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for row, (mean, width) in enumerate(differences.values()):
        single = math.isnan(width)
        axes.errorbar(
            mean, row, xerr=None if single else width, color=BLUE, fmt="o", ms=4, capsize=3,
            mfc="white" if single else BLUE,
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
    """Write the figure, and the folder that it goes to.

    Raises:
      ValueError: the file's name does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path} would be a PNG image: give it a name that ends in .png.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(to_png(figure))


DRAW = {"heatmaps": draw_heatmaps, "histograms": draw_histograms, "curves": draw_curves}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=DRAW)
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs")
    parser.add_argument("png", help="the file to write")
    parser.add_argument(
        "--field", default="penalty.beta", help="of the config: one run for each value"
    )
    options = parser.parse_args(arguments)
    name = options.field.rpartition(".")[2]
    try:
        runs = runs_by_value(options.paths, options.field)
        figure = DRAW[options.kind]({f"{name} {cell_text(v)}": run for v, run in runs.items()})
        write_png(figure, options.png)
        print(f"{options.png} shows", ", ".join(map(str, runs.values())))
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
