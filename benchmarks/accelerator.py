"""What a step of ResNet-20 costs on an accelerator, and what makes it cheaper.

  python benchmarks/accelerator.py

Whole steps of a run at batch 128 on random 32x32x3 images, on one device: the batch is cropped and
flipped there, and the masks keep 5 % of the kernels. Prints a row per variant: milliseconds of a
step of one run, its ratio to RST without a penalty, the seconds of an epoch of 45,000 images, and
the MiB of the compiled step beside the images, by XLA's count.

In "steps per dispatch" a `lax.scan` takes several steps in one call. RigL's "program without
updates" is what a run on a GPU calls at all steps but those that change the masks; the other rows
of RigL are what it would call at every step. "Runs together" is `vmap` over runs, and its
milliseconds are those of a step of all divided by their number.

All variants are compiled at once by threads, then timed in turns. It runs on a CPU as well, where
it takes half an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from output import print_table
from random_run import random_plan

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.sweeps.replicas import replica_data, replica_function, stack
from cka_sr_jax.training import RunPlan, map_devices, new_state
from cka_sr_jax.training.input import step_indices, train_on_examples, training_data

MODEL: dict[str, Any] = {"width": 16}
NAME = "resnet20"
STEPS_OF_EPOCH = 45_000 // 128
CALLS, REPEATS = 30, 7  # in each timing, and timings
PENALTY = {"penalty__beta": 1e-4, "penalty__samples": 8}
RIGL = {"sparsity__rule": "rigl", "sparsity__update_every": 100}
PLANS: dict[str, dict[str, Any]] = {
    "RST": {},
    "dense": {"sparsity__rule": "dense", "sparsity__density": 1.0},
    "RST, n = 8": PENALTY,
    "RST, n = 8, every 5": {**PENALTY, "penalty__every": 5},
    "RST, n = 128": {**PENALTY, "penalty__samples": 128},
    "RigL every 100": RIGL,
    "RigL every 10": {**RIGL, "sparsity__update_every": 10},
    "RST, bfloat16": {"model__dtype": "bfloat16"},
}
TOGETHER = (3, 9)
DISPATCHED = 10


class Stepper:
    """A compiled function of the state that keeps what it returns; a call takes some steps.

    Attributes:
      steps: of one call, over all runs.
      memory: bytes of the state and the temporary arrays, by XLA's count.
    """

    def __init__(self, step: Any, state: Any, indices: np.ndarray, data: Any, steps: int) -> None:
        """Compile; the state's memory is reused, so a copy is kept."""
        self._state = jax.tree.map(jax.numpy.copy, state)
        self._rest = jax.numpy.asarray(indices), data
        self._step = step.lower(self._state, *self._rest).compile()
        self.steps = steps
        counted = self._step.memory_analysis()
        images = sum(leaf.nbytes for leaf in jax.tree.leaves(self._rest))
        self.memory = counted.argument_size_in_bytes + counted.temp_size_in_bytes - images

    def __call__(self) -> Any:
        """Some steps; returns their metrics."""
        self._state, metrics = self._step(self._state, *self._rest)
        return metrics


def plan_of(**fields: Any) -> RunPlan:
    """A run of the model, long enough that all timed steps are of its middle."""
    fields = {"sparsity__rule": "rst", "sparsity__density": 0.05, **fields}
    augmented = {"data__flip": True, "data__pad": 4}
    return random_plan(NAME, MODEL, (32, 32, 3), train__steps=10_000, **augmented, **fields)


def one_run(plan: RunPlan, steps: int = 1, may_change: bool = True) -> Stepper:
    """`steps` steps of one run in a call; without `may_change` such that leave the masks alone."""
    train_on = train_on_examples(plan, plan.config.seed, plan.config.penalty.beta, may_change)

    def several(state: Any, shards: Any, data: Any, axis_name: str | None) -> Any:
        return jax.lax.scan(lambda s, shard: train_on(s, shard, data, axis_name), state, shards)

    indices = np.stack([step_indices(plan, i) for i in range(steps)])
    function, shard = (train_on, indices[0]) if steps == 1 else (several, indices)
    step = map_devices(function, plan.devices[:1], donate_state=True)
    return Stepper(step, new_state(plan), shard, training_data(plan), steps)


def runs_together(plans: list[RunPlan]) -> Stepper:
    """A step of each run in a call."""
    indices = np.stack([step_indices(plan, 0) for plan in plans])
    states = stack([new_state(plan) for plan in plans])
    return Stepper(replica_function(plans), states, indices, replica_data(plans), len(plans))


def main() -> None:
    """Print the table."""
    # Plans are made one after the other, since `random_plan` puts the images into a module.
    variants: dict[str, Callable[[], Stepper]] = {
        name: partial(one_run, plan_of(**fields)) for name, fields in PLANS.items()
    }
    name = f"RST, {DISPATCHED} steps per dispatch"
    variants[name] = partial(one_run, plan_of(), DISPATCHED)
    variants["RigL, a program without updates"] = partial(
        one_run, plan_of(**RIGL), may_change=False
    )
    for runs in TOGETHER:
        plans = [plan_of(seed=seed) for seed in range(runs)]
        variants[f"RST, {runs} runs together"] = partial(runs_together, plans)
    began = time.perf_counter()
    with ThreadPoolExecutor() as threads:
        compiled = {name: threads.submit(make) for name, make in variants.items()}
    steppers = {name: made.result() for name, made in compiled.items()}
    print(f"Compiled {len(steppers)} variants in {time.perf_counter() - began:.0f} s.", flush=True)
    calls = {name: max(1, CALLS // stepper.steps) for name, stepper in steppers.items()}
    times = interleaved_seconds(steppers, REPEATS, calls)
    seconds = {name: times[name] / stepper.steps for name, stepper in steppers.items()}
    print_table(
        "A step of ResNet-20 at batch 128, median of interleaved timings",
        ["step", "ms", "against RST", "s an epoch", "MiB"],
        [
            [
                name,
                f"{1e3 * s:.3f}",
                f"{s / seconds['RST']:.3f}",
                f"{s * STEPS_OF_EPOCH:.2f}",
                f"{steppers[name].memory / 2**20:.0f}",
            ]
            for name, s in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
