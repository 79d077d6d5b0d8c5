"""The graphs that runs of a DAG have learned: what is left of them at a threshold, and a drawing.

  python -m cka_sr_jax.analysis.topology table runs/GRID
  python -m cka_sr_jax.analysis.topology draw runs/GRID/POINT graph.png --threshold=0.1

table: for each model, edge penalty and threshold, over the runs with learned edges, the share of
edges left, the nodes that still lead from a stage's input to its output, and accuracy on validation
and test images without retraining. A threshold is a share of the strongest edge to a node. draw: a
run's stages, each node a dot, each edge an arc whose width is its |weight|.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import FancyArrowPatch
from ml_collections import ConfigDict

from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.figures import write_png
from cka_sr_jax.analysis.run import Run, open_run
from cka_sr_jax.analysis.runs import load_runs
from cka_sr_jax.data import load_dataset, normalize
from cka_sr_jax.models import edge_matrices, live_nodes, remove_edges
from cka_sr_jax.report import markdown_table
from cka_sr_jax.report.figures import BLUE, VERMILION, Figure
from cka_sr_jax.training.build import image_statistics

THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
HEADER = [
    "model", "edge penalty", "adaptive", "threshold", "runs", "edges left", "live nodes",
    "validation", "test",
]  # fmt: skip
BATCH = 500


def topology_table(runs: Sequence[Run], thresholds: Sequence[float] = THRESHOLDS) -> str:
    """The Markdown table of these runs; those whose graph is fixed are left out.

    Raises:
      ValueError: no run with learned edges.
    """
    found = defaultdict(list)
    for run in runs:
        name, options = (run.config["model"][key] for key in ("name", "options"))
        if name.startswith("dag") and options.get("graph", "learned") == "learned":
            kind = name, options.get("edge_penalty", 0.0), options.get("adaptive", False)
            for threshold, row in zip(thresholds, _rows(run, thresholds), strict=True):
                found[kind, threshold].append(row)
    if not found:
        raise ValueError("none of the runs has learned edges: name runs of a DAG, such as dag4.")
    table = []
    for ((name, penalty, adaptive), threshold), rows in sorted(found.items()):
        edges, live, validation, test = np.mean(rows, axis=0)
        shares = [f"{share:.1%}" if np.isfinite(share) else "-" for share in (validation, test)]
        first = [name, f"{penalty:g}", "yes" if adaptive else "no", f"{threshold:g}"]
        table.append([*first, str(len(rows)), f"{edges:.1%}", f"{live:.1f}", *shares])
    return markdown_table(HEADER, table, "llllrrrrr")


def _rows(run: Run, thresholds: Sequence[float]) -> list[list[float]]:
    """[share of edges, live nodes, validation accuracy, test accuracy] of each threshold."""
    config, model, variables = ConfigDict(dict(run.config)), run.model, run.variables
    data = load_dataset(config.data)
    mean, std = image_statistics(config, data)

    @jax.jit
    def correct(variables: Any, images: Any, labels: Any) -> Any:
        logits: Any = model.apply(variables, normalize(images, mean, std), train=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    def accuracy(variables: Any, images: Any, labels: Any) -> float:
        parts = [slice(i, i + BATCH) for i in range(0, len(labels), BATCH)]
        right = (correct(variables, jnp.asarray(images[p]), jnp.asarray(labels[p])) for p in parts)
        return sum(map(float, right)) / len(labels) if len(labels) else float("nan")

    rows = []
    for threshold in thresholds:
        params = remove_edges(variables["params"], threshold)
        left = {**variables, "params": params}
        edges = [matrix[np.tril_indices(len(matrix))] for matrix in edge_matrices(params).values()]
        rows.append([
            float(np.mean(np.concatenate(edges) != 0)),
            float(sum(map(len, live_nodes(params).values()))),
            accuracy(left, data.validation_images, data.validation_labels),
            accuracy(left, data.test_images, data.test_labels),
        ])  # fmt: skip
    return rows


def draw_graph(params: Mapping[str, Any], threshold: float = 0.0) -> Figure:
    """The stages of a DAG with the edges that `remove_edges` leaves; negative ones are red.

    Raises:
      ValueError: as `remove_edges`.
    """
    matrices = edge_matrices(remove_edges(params, threshold))
    figure = Figure(figsize=(6.4, 2.2 * len(matrices)), layout="constrained")
    for axes, (stage, matrix) in zip(
        np.atleast_1d(figure.subplots(len(matrices))), matrices.items(), strict=True
    ):
        size = len(matrix)
        widest = np.abs(matrix).max() or 1
        for j, i in zip(*np.nonzero(matrix), strict=True):
            # Arcs over one step are straight; longer ones bend, above and below in turn.
            bend = 0.0 if j == i else -0.35 if (j - i) % 2 else 0.35
            axes.add_patch(
                FancyArrowPatch(
                    (float(i), 0), (float(j) + 1, 0), connectionstyle=f"arc3,rad={bend}",
                    arrowstyle="-|>", mutation_scale=8, shrinkA=7, shrinkB=7,
                    linewidth=0.3 + 2.5 * abs(matrix[j, i]) / widest,
                    color=BLUE if matrix[j, i] > 0 else VERMILION,
                )
            )  # fmt: skip
        axes.plot(range(size + 1), [0] * (size + 1), "o", color="black", ms=7)
        for node in range(size + 1):
            label = "input" if node == 0 else "output" if node == size else str(node)
            axes.annotate(label, (node, 0), (0, -18), textcoords="offset points", ha="center")
        axes.set_title(stage, fontsize="medium", loc="left")
        axes.set_xlim(-0.5, size + 0.5)
        axes.set_ylim(-0.2 * size, 0.2 * size)
        axes.axis("off")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write the drawing, that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="kind", required=True)
    table = kinds.add_parser("table", help="what is left at each threshold")
    table.add_argument("paths", nargs="+", help="folders of a grid or of runs")
    draw = kinds.add_parser("draw", help="a run's graph")
    draw.add_argument("run", help="folder of a run")
    draw.add_argument("png", help="the file to write")
    draw.add_argument("--threshold", type=float, default=0.0, help="as of remove_edges")
    options = parser.parse_args(arguments)
    try:
        if options.kind == "table":
            print(topology_table(load_runs(options.paths)))
        else:
            params = open_run(Path(options.run)).variables["params"]
            write_png(draw_graph(params, options.threshold), options.png)
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
