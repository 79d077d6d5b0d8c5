"""Layer sparsity over seeds: what depth the path finds, at what error and at what speed.

  python benchmarks/layer_sparsity.py synthetic
  python benchmarks/layer_sparsity.py fashion_mnist TFDS_FOLDER

`synthetic`: configs/studies/layer_sparsity_synthetic.py with teachers of 1, 2 and 3 active layers,
5 seeds. `fashion_mnist`: configs/studies/layer_sparsity_fashion_mnist.py as it is, with CKA-SR, and
with RigL at density 0.1, 3 seeds.

Prints a Markdown table of test errors and of ratios to the network without penalty. Each run has a
row for the choice on validation data: the shallowest network within a standard error of the best.
It has a second row if the best network of the target depth (s + 1 for s active layers; 4 for
Fashion-MNIST) is another one. `synthetic` spends most of its time on compilation; with
JAX_COMPILATION_CACHE_DIR=FOLDER and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 in the environment
that is done once for all seeds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/

from rich.console import Console

from cka_sr_jax.report import markdown_table
from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity.compare import compare
from cka_sr_jax.workflows.layer_sparsity.path import choose, fit_path
from configs.studies import layer_sparsity_fashion_mnist, layer_sparsity_synthetic

VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "CKA-SR": {"penalty.beta": 1e-3},
    "RigL 0.1": {"sparsity.rule": "rigl", "layer_sparsity.refit_keep_zeros": True},
}
COLUMNS = [
    "run", "seed", "choice", "strength", "depth", "no penalty", "merged", "warm", "cold",
    "oracle", "mult.-adds", "non-zero", "time",
]  # fmt: skip


def rows_of(label: str, config: Any, depth: int) -> list[list[str]]:
    """A row for each way to choose: test errors, and ratios to the network without penalty.

    One chooses the shallowest network within a standard error of the best, the other the best
    validation error among depths up to `depth`.
    """
    began = time.perf_counter()
    plan = layer_sparsity.prepare(config)
    path = fit_path(plan, Console(stderr=True))
    shallow = [point for point in path if len(point.merged) <= depth]
    choices = {"1 std. error": choose(path, 1.0)}
    if shallow:
        best = min(shallow, key=lambda point: point.error.mean)
        if best is not choices["1 std. error"]:
            choices[f"depth <= {depth}"] = best
    rows = []
    for choice, chosen in choices.items():
        networks = {n.name: n for n in compare(plan, path[0], chosen)}
        before = networks["no penalty"]
        after = networks["fitted"]  # where no layer merged
        if chosen.has_merged:
            after = networks[f"refit, {chosen.start}"]
        names = ("no penalty", "merged", "refit, warm", "refit, cold", "oracle depth")
        errors = [f"{networks[n].test_error:.4f}" if n in networks else "-" for n in names]
        row = [
            label,
            str(config.seed),
            choice,
            f"{chosen.strength:g}",
            str(after.depth),
            *errors,
            f"{after.multiply_adds / before.multiply_adds:.2f}",
            f"{after.nonzero_multiply_adds / before.nonzero_multiply_adds:.2f}",
            f"{after.relative_time:.2f}",
        ]
        rows.append(row)
    print(f"{label}, seed {config.seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return rows


def main() -> None:
    """Run all and print one table: test errors, and ratios to the network without penalty."""
    rows = []
    if sys.argv[1:2] == ["synthetic"]:
        for active in (1, 2, 3):
            for seed in range(5):
                config = layer_sparsity_synthetic.get_config()
                config.seed = seed
                config.layer_sparsity.teacher.active = active
                rows += rows_of(f"{active} active", config, active + 1)
    elif sys.argv[1:2] == ["fashion_mnist"] and len(sys.argv) == 3:
        for label, fields in VARIANTS.items():
            for seed in range(3):
                config = layer_sparsity_fashion_mnist.get_config()
                config.update_from_flattened_dict({"data.dir": sys.argv[2], "seed": seed, **fields})
                rows += rows_of(label, config, 4)
    else:
        raise SystemExit("usage: layer_sparsity.py synthetic, or fashion_mnist TFDS_FOLDER")
    print(markdown_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
