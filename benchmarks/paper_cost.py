"""The cost of the grids of the paper's tables, computed without running them.

  python benchmarks/paper_cost.py

Prints a row per grid: its runs, the steps of a run, the FLOPs of a run and of the grid. A run's
FLOPs are 3 x forward x images, with 2 per multiply-add and all weights counted, since masks save
no time on dense hardware. The penalty (see train_step.py) and evaluations are not counted. The data
are CIFAR's 50,000 images of 32 x 32 x 3.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.models import create_model
from cka_sr_jax.report import markdown_table
from cka_sr_jax.sparsity import leaf_paths
from cka_sr_jax.sweeps import grid_points

ROOT = Path(__file__).parents[1]
TRAIN_IMAGES = 50_000
COLUMNS = ["config", "runs", "steps of a run", "10^15 FLOPs of a run", "of the grid"]


def forward_flops(name: str, classes: int, **options: int) -> int:
    """2 x multiply-adds of one 32 x 32 x 3 image's forward pass."""
    model = create_model(name, classes, **options)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    sizes = {path: math.prod(leaf.shape) for path, leaf in leaf_paths(variables["params"])}
    positions = kernel_positions(model, variables, image)
    return sum(2 * sizes[path] * count for path, count in positions.items())


def cost_row(module: str) -> list[str] | None:
    """The row of a config's grid, whose points share model and length; None without a grid."""
    config = importlib.import_module(module).get_config()
    if not (config.grid or config.seeds):
        return None
    runs = len(grid_points(config))
    images = round(TRAIN_IMAGES * (1 - config.data.validation))
    steps = math.ceil(config.train.epochs * (images // config.train.batch_size))
    classes = int(config.data.name.removeprefix("cifar"))
    forward = forward_flops(config.model.name, classes, **config.model.options)
    flops = 3 * forward * steps * config.train.batch_size / 1e15
    return [
        module.rpartition(".")[2],
        f"{runs}",
        f"{steps:,}",
        f"{flops:.2f}",
        f"{runs * flops:.0f}",
    ]


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(ROOT))  # where `configs` is
    names = [f"paper.{path.stem}" for path in sorted((ROOT / "configs" / "paper").glob("*.py"))]
    rows = [cost_row(f"configs.{name}") for name in [*names, "studies.cifar10_resnet20_rigl_cka"]]
    print(markdown_table(COLUMNS, [row for row in rows if row]))


if __name__ == "__main__":
    main()
