"""The cost of the penalty in a training step, and of the loop around the step.

  python benchmarks/train_step.py

ResNet-20 at batch 128 on 32x32x3 images and an MLP at batch 128 on 28x28x1, masks at density 0.05.
Prints two tables:

1. Milliseconds of a step by penalty, and the difference to the step without. "penalty alone" is
   the penalty's time outside a step (see cka_penalty.py) as a share of the step's.
2. Steps per second of the training loop, which makes batches on the device, gathers metrics and
   logs, against calls of the bare compiled step on a batch that is already there.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cka_penalty as penalty_benchmark
import jax
import jax.numpy as jnp
import numpy as np
import optax
from output import print_table
from random_run import random_plan
from rich.console import Console

from cka_sr_jax import make_rule, sparsify
from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.models import create_model
from cka_sr_jax.report import read_metrics
from cka_sr_jax.training import (
    cka_sr,
    classification_loss,
    create_state,
    loop,
    make_train_step,
)
from cka_sr_jax.training.evaluation import make_evaluator

PENALTIES: dict[str, dict[str, Any]] = {
    "no penalty": {},
    "n = 8": {"beta": 1e-4, "samples": 8},
    "n = 8, every 5": {"beta": 1e-4, "samples": 8, "every": 5},
    "n = 128": {"beta": 1e-4, "samples": 128},
}
MODELS = {
    "ResNet-20": ("resnet20", {}, (32, 32, 3)),
    "MLP": ("mlp", {"hidden": (256,) * 6}, (28, 28, 1)),
}
# Timings of each rival, and calls in each: five, so that "every 5" adds its penalty once.
REPEATS = {"ResNet-20": (8, 5), "MLP": (15, 20)}


class Setup(NamedTuple):
    """What a step takes: the state is of step 0, the batch of 128 random images."""

    model: Any
    optimizer: Any
    state: Any
    batch: dict[str, jax.Array]


def setup(name: str) -> Setup:
    """Those of a model, with masks at density 0.05."""
    kind, options, shape = MODELS[name]
    model = create_model(kind, 10, **options)
    tx = sparsify(optax.sgd(0.1, momentum=0.9, nesterov=True), make_rule("rst", density=0.05))
    images = jax.random.normal(jax.random.key(1), (128, *shape))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:2])
    state = create_state(variables, tx)
    batch = {"image": images, "label": jnp.arange(128, dtype=jnp.int32) % 10}
    return Setup(model, tx, state, batch)


class Stepper:
    """A compiled step that keeps its state, so that successive calls differ."""

    def __init__(self, made: Setup, **options: Any) -> None:
        """Compile for one device; the step reuses the state's memory.

        Args:
          options: of `cka_sr`; none: no penalty.
        """
        penalty = cka_sr(**options) if options else None
        step = make_train_step(classification_loss(made.model, penalty), made.optimizer)
        self._step = jax.jit(lambda s, batch: step(s, batch, None), donate_argnums=0)
        self._state = jax.tree.map(jnp.copy, made.state)

    def __call__(self, batch: dict[str, jax.Array]) -> Any:
        """One step; returns its metrics."""
        self._state, metrics = self._step(self._state, batch)
        return metrics


def step_rows(name: str) -> list[list[str]]:
    """Rows of one model: step time by penalty, and its ratio to the step without."""
    made = setup(name)
    calls = {
        label: partial(Stepper(made, **options), made.batch) for label, options in PENALTIES.items()
    }
    repeats, inner = REPEATS[name]
    times = interleaved_seconds(calls, repeats, dict.fromkeys(calls, inner))
    bare = times["no penalty"]
    rows = [
        [f"{name}, {label}", f"{seconds * 1e3:.1f}", f"{100 * (seconds / bare - 1):+.1f} %"]
        for label, seconds in times.items()
    ]
    if name == "ResNet-20":
        alone = partial(penalty_benchmark.penalty_step, penalty_benchmark.features(3, 8))
        seconds = interleaved_seconds({"alone": alone}, 15, {"alone": 10})["alone"]
        rows.append(
            ["penalty alone, n = 8", f"{seconds * 1e3:.2f}", f"{100 * seconds / bare:.2f} %"]
        )
    return rows


def loop_row(name: str, steps: int, rounds: int) -> list[str]:
    """The loop's rate over the bare step's, both without penalty, in interleaved rounds."""
    made = setup(name)
    bare = Stepper(made)
    jax.block_until_ready(bare(made.batch))
    kind, options, shape = MODELS[name]
    plan = random_plan(
        kind, options, shape, penalty__beta=0.0, train__steps=steps, data__validation=0.0,
        checkpoint__every=steps, train__log_every=max(5, steps // 20),
    )  # fmt: skip
    evaluator = make_evaluator(plan)
    rates: dict[str, list[float]] = {"loop": [], "bare": []}
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            metrics = bare(made.batch)
        jax.block_until_ready(metrics)
        rates["bare"].append(steps / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "run"
            loop.train(plan, workdir, evaluator, Console(quiet=True))
            records = read_metrics(workdir / "metrics.jsonl")
        # The first record spans the compilation.
        recorded = [r["steps_per_second"] for r in records if r["split"] == "train"]
        rates["loop"].append(float(np.median(recorded[1:])))
    medians = {key: float(np.median(values)) for key, values in rates.items()}
    return [
        name,
        f"{medians['bare']:.1f}",
        f"{medians['loop']:.1f}",
        f"{100 * medians['loop'] / medians['bare']:.0f} %",
    ]


def main() -> None:
    """Print both tables."""
    print_table(
        "Training step at batch 128: median of interleaved runs",
        ["step", "ms", "against no penalty"],
        [row for name in MODELS for row in step_rows(name)],
    )
    print_table(
        "The training loop against the bare step",
        ["model", "bare steps/s", "loop steps/s", "loop / bare"],
        [loop_row("ResNet-20", 20, 3), loop_row("MLP", 1000, 3)],
    )


if __name__ == "__main__":
    main()
