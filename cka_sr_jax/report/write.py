"""`write_report` reads the files of a work directory and writes its report next to them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cka_sr_jax.accounting import LayerRow
from cka_sr_jax.report.figures import (
    LEARNING,
    cka_curve,
    cka_heatmap,
    density_bars,
    learning_curves,
    mask_curves,
    rank_curves,
    series,
    to_png,
)
from cka_sr_jax.report.html import render_page
from cka_sr_jax.report.metrics import read_metrics


def write_report(
    workdir: str | Path,
    *,
    result: Mapping[str, Any],
    layers: Sequence[LayerRow],
    cka_matrix: np.ndarray | None,
    feature_names: Sequence[str],
    feature_groups: Sequence[str],
) -> Path:
    """Write `workdir`/report/ and return the path of its index.html, which needs no other file.

    The folder also gets the figures as PNG images, layers.csv and, with a CKA matrix,
    cka_matrix.csv.

    Args:
      workdir: has config.json and, if the run logged anything, metrics.jsonl.
      result: the content of result.json, which may not be written yet.
      layers: of `layer_rows`.
      cka_matrix: CKA [L, L] between the trained network's features; None: no heat map.
      feature_names: L names, one per feature.
      feature_groups: L names, the stage of each feature.

    Raises:
      FileNotFoundError: config.json is missing.
      ValueError: the matrix, the names and the groups don't agree on L.
    """
    workdir = Path(workdir)
    config = json.loads((workdir / "config.json").read_text())
    records = read_metrics(workdir / "metrics.jsonl")
    figures = {
        **{f"{name}_curve": learning_curves(records, [name]) for name in LEARNING},
        "cka_curve": cka_curve(records),
        "density": density_bars(layers),
    }
    if series(records, "masks", "density")[0]:
        figures["mask_curves"] = mask_curves(records)
    if any(record.get("split") == "ranks" for record in records):
        figures["rank_curves"] = rank_curves(records)
    if cka_matrix is not None:
        figures["cka_heatmap"] = cka_heatmap(cka_matrix, feature_names, feature_groups)

    report = workdir / "report"
    report.mkdir(exist_ok=True)
    images = {name: to_png(figure) for name, figure in figures.items()}
    for name, png in images.items():
        (report / f"{name}.png").write_bytes(png)
    cells = ([row.path, "x".join(map(str, row.shape)), *row[2:]] for row in layers)
    _write_csv(report / "layers.csv", LayerRow._fields, cells)
    if cka_matrix is not None:
        named = ([name, *row] for name, row in zip(feature_names, cka_matrix.tolist(), strict=True))
        _write_csv(report / "cka_matrix.csv", ["feature", *feature_names], named)
    page = report / "index.html"
    page.write_text(render_page(config, result, layers, images), encoding="utf-8")
    return page


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
