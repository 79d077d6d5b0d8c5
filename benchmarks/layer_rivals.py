"""Layers removed by the layer penalty, by EASIER's entropy and by CKA: error at each depth.

  python benchmarks/layer_rivals.py TFDS_FOLDER

Each method removes ReLU layers of the MLP of configs/studies/layer_sparsity_fashion_mnist.py, with
3 seeds. Prints, for each depth that a method reaches, the test error of the network before its
refit, after the warm and after the cold one, as mean and range over the seeds that reach it; the
multiply-adds and the time of inference as a share of the whole network's; and how many trainings it
took up to there. Nothing is chosen by these errors. For the scores each refit starts from the last
warm one, so that depth 2 is the eighth training of its weights; the penalty trains twice. "no
removal" trains the whole network as often as that: what the scores gain by training longer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/

from output import spread
from rich.console import Console

from cka_sr_jax.report import markdown_table
from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity.fit import estimate, fit
from cka_sr_jax.workflows.layer_sparsity.path import Point, fit_path, multiply_adds, refit
from cka_sr_jax.workflows.layer_sparsity.tables import inference_seconds
from configs.studies import layer_sparsity_fashion_mnist

SEEDS = range(3)
STRENGTHS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
METHODS: dict[str, dict[str, Any]] = {
    "layer penalty": {"layer_sparsity.strengths": STRENGTHS},
    "entropy": {"layer_sparsity.strengths": (), "layer_sparsity.score": "entropy"},
    "CKA": {"layer_sparsity.strengths": (), "layer_sparsity.score": "cka"},
}
COLUMNS = [
    "method", "depth", "seeds", "before refit", "warm", "cold", "mult.-adds", "time", "trainings",
]  # fmt: skip


def measured(method: str, seed: int, folder: str) -> dict[int, dict[str, float]]:
    """{depth: test errors, shares and trainings} of one path; of equal depths the first."""
    began = time.perf_counter()
    config = layer_sparsity_fashion_mnist.get_config()
    config.update_from_flattened_dict({"data.dir": folder, "seed": seed, **METHODS[method]})
    plan = layer_sparsity.prepare(config)
    path = fit_path(plan, Console(stderr=True))
    points: dict[int, Point] = {}
    for point in path:
        points.setdefault(len(point.merged), point)
    inputs = plan.task.test.inputs[: config.eval.batch_size]
    seconds = inference_seconds({str(d): p.merged for d, p in points.items()}, inputs)
    whole = len(path[0].merged)
    rows = {}
    for depth, point in points.items():
        chains = {"before refit": point.merged, "warm": point.warm, "cold": point.cold}
        rows[depth] = {
            name: estimate(plan.task, chain, plan.task.test).mean for name, chain in chains.items()
        } | {
            "mult.-adds": multiply_adds(point.merged) / multiply_adds(path[0].merged),
            "time": seconds[str(depth)] / seconds[str(whole)],
            "trainings": 1 + (point.has_merged if point.strength else whole - depth),
        }
    print(f"{method}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return rows


def trained_again(seed: int, folder: str) -> list[float]:
    """Test errors of the whole network after 1 to 8 trainings."""
    config = layer_sparsity_fashion_mnist.get_config()
    config.update_from_flattened_dict({"data.dir": folder, "seed": seed, **METHODS["CKA"]})
    plan = layer_sparsity.prepare(config)
    chains = [fit(plan, plan.hidden)]
    while len(chains) < len(plan.hidden):
        chains.append(refit(plan, chains[-1]))
    return [estimate(plan.task, chain, plan.task.test).mean for chain in chains]


def main() -> None:
    """Print one table."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: layer_rivals.py TFDS_FOLDER")
    table = []
    errors = zip(*(trained_again(seed, sys.argv[1]) for seed in SEEDS), strict=True)
    for trainings, values in enumerate(errors, start=1):
        shares = "1.00", "1.00", str(trainings)
        table.append(["no removal", "all", str(len(SEEDS)), "-", spread(values), "-", *shares])
    for method in METHODS:
        found = [measured(method, seed, sys.argv[1]) for seed in SEEDS]
        for depth in sorted({depth for rows in found for depth in rows}, reverse=True):
            rows = [rows[depth] for rows in found if depth in rows]
            errors = (spread(row[c] for row in rows) for c in ("before refit", "warm", "cold"))
            shares = (spread((row[c] for row in rows), 2) for c in ("mult.-adds", "time"))
            trainings = spread((row["trainings"] for row in rows), 0)
            table.append([method, str(depth), str(len(rows)), *errors, *shares, trainings])
    print(markdown_table(COLUMNS, table))


if __name__ == "__main__":
    main()
