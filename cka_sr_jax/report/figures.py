"""The report's figures: each function takes numbers and returns a Matplotlib `Figure`.

`to_png` makes an image of a figure where it is written to a file. Figures are made without
`pyplot`, which would keep each of them in memory and open a window backend.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib import figure as matplotlib_figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cka_sr_jax.accounting import LayerRow

Record = Mapping[str, Any]  # one line of metrics.jsonl


class Figure(matplotlib_figure.Figure):
    """A figure that a notebook shows, whether or not it has imported `pyplot`."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


# Two of Okabe and Ito's colors; color-blind readers see them as different.
BLUE, VERMILION = "#0072B2", "#D55E00"
SPLITS = {
    "train": ("training", BLUE),
    "validation": ("validation", VERMILION),
    "test-selection": ("test set (used for selection)", VERMILION),
}
# {name in metrics.jsonl: label of its axis}
LEARNING = {"loss": "loss (nats)", "accuracy": "accuracy (%)", "learning_rate": "learning rate"}


def learning_curves(records: Sequence[Record], names: Sequence[str] = tuple(LEARNING)) -> Figure:
    """A panel for each of the names over epochs, with a line for each split that logged it.

    Args:
      records: of metrics.jsonl.
      names: of LEARNING.
    """
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(4 * len(names), 3.6), layout=layout)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _plot_splits(axes, records, name, LEARNING[name])
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        if name == "learning_rate":
            axes.set_ylim(bottom=0)
    return figure


def cka_curve(records: Sequence[Record]) -> Figure:
    """Mean CKA within and across stages over epochs and, if logged, the penalty's value below."""
    has_penalty = len(series(records, "train", "penalty")[0]) > 0
    figure = Figure(figsize=(6, 5.1), layout="constrained")
    axes = figure.subplots(2 if has_penalty else 1, 1, sharex=True, squeeze=False)[:, 0]
    kinds = {"cka_within_stage": "of one stage", "cka_cross_stage": "of two stages"}
    logged = [k for k in kinds if any(series(records, split, k)[0] for split in SPLITS)]
    first, *second = logged or ["cka_within_stage"]
    label = "mean CKA of pairs (0 to 1)" if logged else "mean CKA"
    _plot_splits(axes[0], records, first, label)
    # A legend of the splits would tell when CKA was computed and not on which images.
    if legend := axes[0].get_legend():
        legend.remove()
    if logged:
        axes[0].lines[0].set_label(kinds[first])
        for kind, split in itertools.product(second, SPLITS):
            points = series(records, split, kind)
            if points[0]:
                axes[0].plot(*points, color=BLUE, marker="s", ms=3.5, label=kinds[kind])
        axes[0].legend(frameon=False)
    axes[0].set_ylim(min(0, axes[0].get_ylim()[0]), 1.02)
    if has_penalty:
        axes[0].set_xlabel("")
        _plot_splits(axes[1], records, "penalty", "CKA penalty before beta")
    return figure


def rank_curves(records: Sequence[Record]) -> Figure:
    """The effective rank of each feature over epochs, the first layers light, the last dark."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    logged = next((record for record in records if record.get("split") == "ranks"), {})
    names = [name for name in logged if name not in ("split", "step", "epoch")]
    axes.set_prop_cycle(color=colormaps["viridis_r"](np.linspace(0.1, 1, max(len(names), 1))))
    for name in names:
        axes.plot(*series(records, "ranks", name), label=name, marker="o", ms=3)
    _label(axes, "effective rank of the features")
    if 0 < len(names) <= 10:  # more names would cover the lines
        axes.legend(frameon=False)
    return figure


def mask_curves(records: Sequence[Record]) -> Figure:
    """What a rule did to the masks at each update, from the records of metrics.jsonl.

    Four panels over epochs: density, share explored (R_s) and churn; the density of each layer;
    FLOPs of one image's forward pass; FLOPs of the training so far.
    """
    figure = Figure(figsize=(12, 6.6), layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.06))
    (shares, layers), (flops, training) = figure.subplots(2, 2, sharex=True)
    names = {
        "density": "density",
        "explored": "kept at least once (R_s)",
        "churn": "changed (churn)",
    }
    for name, label in names.items():
        _plot_steps(shares, series(records, "masks", name), label=label)
    _label_percent(shares, "share of weights (%)")
    paths = {key: None for record in records for key in record if key.startswith("density/")}
    for path in paths:
        name = path.removeprefix("density/").removesuffix("/kernel")
        layers.plot(*series(records, "layers", path), label=name, marker="o", ms=3)
    _label_percent(layers, "density of each layer (%)")
    _plot_steps(flops, series(records, "masks", "flops"), color=BLUE)
    _label(flops, "FLOPs of one image, forward")
    training.plot(*series(records, "train", "training_flops"), color=BLUE)
    _label(training, "FLOPs of training so far")
    return figure


def cka_heatmap(
    matrix: np.ndarray,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Figure:
    """CKA between all features on a color scale from 0 to 1, with lines between the stages.

    Debiased CKA can be below 0: it gets the color of 0, and the color bar shows an arrow. NaN is
    gray.

    Args:
      matrix: [L, L].
      names: L names, one per feature; None: their numbers.
      groups: L stage names; the features of a stage are next to each other. None: one stage.

    Raises:
      ValueError: the three don't agree on L.
    """
    names = [str(i) for i in range(len(matrix))] if names is None else names
    groups = [""] * len(names) if groups is None else groups
    size = len(names)
    if matrix.shape != (size, size) or len(groups) != size:
        raise ValueError(
            f"a CKA matrix of shape {matrix.shape} does not fit {size} names and "
            f"{len(groups)} groups: give one name and one group per row."
        )
    figure = Figure(figsize=(6, 5.1), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"].with_extremes(bad="lightgray")
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap=colors, interpolation="nearest")
    clipped = "min" if (matrix < 0).any() else "neither"
    figure.colorbar(image, ax=axes, label="CKA (0 to 1)", shrink=0.8, extend=clipped)
    outline = [withStroke(linewidth=3, foreground="black")]  # white alone is hard to see on yellow
    for i in stage_boundaries(groups):
        axes.axhline(i - 0.5, color="white", linewidth=1.4, path_effects=outline)
        axes.axvline(i - 0.5, color="white", linewidth=1.4, path_effects=outline)
    label_features(axes, names, groups)
    if size <= 12:
        _write_values(axes, matrix)
    return figure


def density_bars(rows: Sequence[LayerRow]) -> Figure:
    """Density in percent of each parameter array that is no vector, one bar each.

    Args:
      rows: of `layer_rows`.
    """
    kernels = [row for row in rows if not row.is_vector]
    figure = Figure(figsize=(9, 1.1 + 0.24 * max(len(kernels), 4)), layout="constrained")
    axes = figure.subplots()
    if not kernels:
        _say(axes, "no kernels")
        return figure
    percent = [100 * row.density for row in kernels]
    bars = axes.barh(range(len(kernels)), percent, color=BLUE, height=0.75)
    axes.bar_label(bars, [f"{value:.2f}" for value in percent], padding=3, fontsize=9)
    axes.set_yticks(range(len(kernels)), [row.path for row in kernels], parse_math=False)
    axes.set_ylim(len(kernels) - 0.4, -0.6)  # the first layer on top
    axes.set_xlim(0, 1.1 * max(percent) or 1)
    axes.set_xlabel("density: kept weights (%)")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    return figure


def series(records: Sequence[Record], split: str, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the records of a split that have a finite value of that name."""
    points = [
        (float(record["epoch"]), float(record[name]))
        for record in records
        if record.get("split") == split and _finite(record.get(name), record.get("epoch"))
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _finite(*values: Any) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _plot_splits(axes: Axes, records: Sequence[Record], name: str, label: str) -> None:
    drawn = []
    for split, (split_label, color) in SPLITS.items():
        epochs, values = series(records, split, name)
        if epochs:
            marker = "o" if len(epochs) <= 40 else ""  # a line alone would not show a single point
            axes.plot(epochs, values, marker=marker, color=color, ms=3.5, label=split_label)
            drawn.append(split)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    tidy(axes)
    if not drawn:
        _say(axes, "not logged")
    elif drawn != ["train"]:
        axes.legend(frameon=False)


def _label(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    tidy(axes)


def _label_percent(axes: Axes, label: str) -> None:
    _label(axes, label)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if 0 < len(axes.lines) <= 10:  # more names would cover the lines
        axes.legend(frameon=False)


def _plot_steps(axes: Axes, points: tuple[list[float], list[float]], **style: Any) -> None:
    """Steps: a value holds from its update to the next."""
    marker = "o" if len(points[0]) <= 40 else ""  # a line alone would not show a single point
    axes.plot(*points, drawstyle="steps-post", marker=marker, ms=3, **style)


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set(xticks=[], yticks=[])


def stage_boundaries(groups: Sequence[str]) -> list[int]:
    """Indices at which another stage begins."""
    return [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def label_features(axes: Axes, names: Sequence[str], groups: Sequence[str]) -> None:
    """Name the features on both axes, or the stages if there are more than 30 features."""
    ticks: list[float] = list(range(len(names)))
    labels = list(names)
    if len(names) > 30:
        edges = [0, *stage_boundaries(groups), len(groups)]
        ticks = [(a + b - 1) / 2 for a, b in itertools.pairwise(edges)]
        labels = [groups[a] for a in edges[:-1]]
    axes.set_xticks(ticks, labels, rotation=90 if len(labels) > 6 else 0, parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.tick_params(length=0, labelsize=10 if len(labels) <= 12 else 8)


def _write_values(axes: Axes, matrix: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(matrix):
        if math.isfinite(value):
            color = "black" if value > 0.5 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG image."""
    buffer = io.BytesIO()
    figure.set_dpi(130)
    FigureCanvasAgg(figure).print_png(buffer)  # `savefig` lays it out once more
    return buffer.getvalue()
