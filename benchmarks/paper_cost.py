"""What the grids of the paper's tables cost, without running them.

  python benchmarks/paper_cost.py

For each grid: its runs, the steps of a run, and the FLOPs of a run as if dense, 3 x forward x
images, with 2 per multiply-add: masks save none on dense hardware. Neither the penalty (see
train_step.py) nor evaluations are counted. The images are CIFAR's 50,000 of 32 x 32 x 3.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from timing import print_table

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.models import create_model
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


def cost_row(module: str) -> list[str]:
    """The row of one config's grid, all of whose points have one model and one length."""
    config = importlib.import_module(module).get_config()
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
    modules = [
        f"configs.paper.{path.stem}" for path in sorted((ROOT / "configs/paper").glob("*.py"))
    ]
    print_table(
        "Grids of 160 epochs",
        COLUMNS,
        [cost_row(m) for m in [*modules, "configs.studies.cifar10_resnet20_rigl_cka"]],
    )


if __name__ == "__main__":
    main()
