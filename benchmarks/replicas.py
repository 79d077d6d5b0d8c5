"""Runs trained together by vmap against one by one: whole runs an hour, and steps a second.

  python benchmarks/replicas.py

Prints two tables:

1. Whole grids on the digits, one by one and together: runs an hour with compilation, evaluations,
   checkpoints and report, their ratio, and how far apart the two test losses of a run are.
2. Steps with CKA-SR (n = 8) and masks at density 0.05, batch 128, on random images and one device,
   without compilation and evaluations: milliseconds alone and together, and the ratio of steps per
   second. ResNet-20 only runs on an accelerator.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import jax
import numpy as np
from output import print_table
from random_run import random_plan
from rich.console import Console

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.analysis.runs import read_runs
from cka_sr_jax.sweeps import GridOptions, run_grid
from cka_sr_jax.sweeps.replicas import replica_data, replica_function, stack
from cka_sr_jax.training import RunPlan, default_config, map_devices, new_state
from cka_sr_jax.training.input import step_indices, train_on_examples, training_data

# Model, its options, the shape of its images, numbers of replicas, timed calls.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], tuple[int, ...], int]] = {
    "MLP 64-32-32-10": ("mlp", {"hidden": (32, 32)}, (8, 8, 1), (8, 32), 20),
    "MLP 784-6x256-10": ("mlp", {"hidden": (256,) * 6}, (28, 28, 1), (4, 16), 5),
    "ResNet-20": ("resnet20", {}, (32, 32, 3), (4, 16, 64), 1),
}
REPEATS = 7


def plans_of(name: str, replicas: int) -> list[RunPlan]:
    """Plans that differ in seed alone, on random images."""
    kind, options, shape, _, _ = MODELS[name]
    return [random_plan(kind, options, shape, train__steps=1000, seed=i) for i in range(replicas)]


class Stepper:
    """Calls of a compiled step, each from the state that the last one left."""

    def __init__(self, step: Any, state: Any, indices: np.ndarray, data: Any) -> None:
        """Keep a copy of the state: the step reuses its memory."""
        self._step, self._state = step, jax.tree.map(jax.numpy.copy, state)
        self._rest = indices, data

    def __call__(self) -> Any:
        """One step; returns its metrics."""
        self._state, metrics = self._step(self._state, *self._rest)
        return metrics


def row(name: str, replicas: int) -> list[str]:
    """Milliseconds of a step alone and together, and the ratio of the rates."""
    plans = plans_of(name, replicas)
    first = plans[0]
    data = jax.device_put(training_data(first), first.devices[0])
    train_on = train_on_examples(first, first.config.seed, first.config.penalty.beta)
    one = map_devices(train_on, first.devices[:1], donate_state=True)
    indices = np.stack([step_indices(plan, 0) for plan in plans])
    states = [new_state(plan) for plan in plans]
    calls = {
        "one": Stepper(one, states[0], indices[0], data),
        "together": Stepper(replica_function(plans), stack(states), indices, replica_data(plans)),
    }
    inner = MODELS[name][4]
    times = interleaved_seconds(calls, REPEATS, {"one": inner * replicas, "together": inner})
    ratio = replicas * times["one"] / times["together"]
    return [
        name,
        str(replicas),
        f"{times['one'] * 1e3:.2f}",
        f"{times['together'] * 1e3:.2f}",
        f"{ratio:.2f}",
    ]


def whole_runs(seeds: int, replicas: int) -> tuple[float, list[float]]:
    """A grid of `seeds` small runs on the digits: runs an hour, and the test loss of each."""
    config = default_config()
    config.model.options.hidden = (32, 32)
    config.train.steps = 1000
    config.seeds = tuple(range(seeds))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_grid(config, folder, GridOptions(replicas=replicas), Console(quiet=True))
        rate = 3600 * seeds / (time.perf_counter() - began)
        return rate, [row["test.loss"] for row in read_runs([folder])]


def main() -> None:
    """Print the tables."""
    one, losses = whole_runs(8, replicas=1)
    together, losses_together = whole_runs(8, replicas=8)
    apart = np.abs(np.subtract(losses, losses_together)).max()
    columns = ["one by one (runs/h)", "together (runs/h)", "ratio", "test losses apart"]
    rows = [[f"{one:.0f}", f"{together:.0f}", f"{together / one:.2f}", f"{apart:.1e}"]]
    print_table("8 whole runs of an MLP 64-32-32-10, 1000 steps", columns, rows)

    rows = [
        row(name, replicas)
        for name, (*_, counts, _) in MODELS.items()
        if name != "ResNet-20" or jax.default_backend() != "cpu"
        for replicas in counts
    ]
    columns = ["model", "runs", "one (ms)", "together (ms)", "steps per second, ratio"]
    print_table("Runs trained together against one by one", columns, rows)


if __name__ == "__main__":
    main()
