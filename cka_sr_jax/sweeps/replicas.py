"""Runs of a grid that train together in one program: `vmap` over a replica axis.

For accelerators, which a single small network leaves idle. Runs that differ in nothing but seed and
beta are one program: their states are stacked, and seeds and betas are arrays. On a CPU only tiny
networks gain by it (`benchmarks/replicas.py`); there `--jobs` runs points side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.report import say
from cka_sr_jax.training.build import RunPlan, new_state, state_shapes
from cka_sr_jax.training.checkpoints import newest_step
from cka_sr_jax.training.config import flatten
from cka_sr_jax.training.evaluation import make_evaluator
from cka_sr_jax.training.input import (
    own_numbers,
    step_indices,
    train_on_examples,
    training_data,
)
from cka_sr_jax.training.metrics import pack
from cka_sr_jax.training.progress import ProgressReporter
from cka_sr_jax.training.recorder import Recorder, Replica
from cka_sr_jax.training.signals import stop_signals
from cka_sr_jax.training.snapshot import Snapshot, newest_snapshot
from cka_sr_jax.training.step import TrainState
from cka_sr_jax.training.workdir import start_workdir

VARIES = ("seed", "penalty.beta")


def replica_groups(points: Mapping[str, ConfigDict], workdir: Path, most: int) -> list[list[str]]:
    """The names of the points that can train together, at most `most` in a group.

    They differ in seed and beta alone and have the same newest checkpoint.
    """
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, config in points.items():
        fields = {field: value for field, value in flatten(config).items() if field not in VARIES}
        groups[str(sorted(fields.items())), newest_step(workdir / name) or 0].append(name)
    return [names[i : i + most] for names in groups.values() for i in range(0, len(names), most)]


def train_together(plans_of: Mapping[Path, RunPlan], console: Console) -> None:
    """Train each plan in its work directory to its last step, and leave the rest to `run`.

    Each directory then holds what a run on its own leaves when it is killed after its last
    checkpoint, so that `run` writes its result and its report; a run that diverges is left at the
    last checkpoint before. A group that is killed itself goes on from its checkpoints. Each run is
    booked its share of the group's time.

    Raises:
      ConfigError: as `run`.
      ValueError: the runs' newest checkpoints are of different steps.
      SystemExit: at SIGTERM or Ctrl-C, once checkpoints are saved.
    """
    plans = list(plans_of.values())
    first, quiet = plans[0], Console(quiet=True)
    snapshots = [
        newest_snapshot(plan, workdir, partial(say, console))
        or Snapshot.at_start(plan, new_state(plan))
        for workdir, plan in plans_of.items()
    ]
    starts = {int(snapshot.state.step) for snapshot in snapshots}
    if len(starts) > 1:
        raise ValueError(f"the newest checkpoints are of different steps: {sorted(starts)}.")
    (start,) = starts
    evaluator = make_evaluator(first)
    with ExitStack() as open_files:
        recorders = []
        for i, (workdir, plan) in enumerate(plans_of.items()):
            start_workdir(plan.config, workdir)
            replica = Replica(i, len(plans))
            recorder = Recorder(plan, workdir, snapshots[i], evaluator, quiet, replica)
            recorders.append(open_files.enter_context(closing(recorder)))
        states = stack([snapshot.state for snapshot in snapshots])
        step_function = replica_function(plans)
        data = replica_data(plans)
        where = f", from step {start} of {first.steps}" if start else ""
        say(console, f"Training {len(plans)} runs together{where}.")
        with (
            ProgressReporter(first.steps, start, console) as progress,
            stop_signals(console) as stop,
        ):
            for recorder in recorders:
                recorder.start_clock()
            for step in range(start, first.steps):
                indices = np.stack([step_indices(plan, step) for plan in plans])
                states, metrics = step_function(states, indices, data)
                stopping = bool(stop)  # for all runs: one that comes later is for the next step
                save = stopping or recorders[0].save_is_due
                logged = [
                    recorder.record(step + 1, metrics, _part(states, i), save=save)
                    for i, recorder in enumerate(recorders)
                ]
                if logged[0]:
                    progress.update(step + 1, logged[0])
                if all(recorder.diverged for recorder in recorders):
                    break
                if stopping:
                    raise SystemExit(
                        f"Stopped at step {step + 1} of {first.steps}; the same command goes on "
                        "there."
                    )


def replica_function(plans: Sequence[RunPlan]) -> Callable[..., Any]:
    """`(states, indices, data) -> (states, metrics)`, compiled: a step of every run.

    Args:
      plans: alike but for seed and beta. `indices` is [runs, batch], `data` is `replica_data`, and
        the metrics are packed, [runs, m]. The states passed in are gone afterwards.
    """
    first = plans[0]
    penalized = any(plan.config.penalty.beta for plan in plans)

    def step(state: TrainState, indices: Any, data: Any) -> Any:
        beta = data["beta"] if penalized else 0.0
        state, metrics = train_on_examples(first, data["seed"], beta)(state, indices, data, None)
        return state, pack(metrics)

    axes = jax.tree.map(lambda leaf: None if _is_shared(leaf) else 0, state_shapes(first))
    of_data = dict.fromkeys(training_data(first)) | dict.fromkeys(own_numbers(first), 0)
    mapped = jax.vmap(step, in_axes=(axes, 0, of_data), out_axes=(axes, 0))
    return jax.jit(mapped, donate_argnums=0)


def replica_data(plans: Sequence[RunPlan]) -> dict[str, Any]:
    """The training data of all runs, and what is each one's own, with an axis of runs."""
    own = jax.tree.map(lambda *values: np.stack(values), *map(own_numbers, plans))
    return jax.device_put({**training_data(plans[0]), **own}, plans[0].devices[0])


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state of arrays with a leading axis of runs; counts of steps are shared."""
    return jax.tree.map(
        lambda *leaves: jnp.array(leaves[0]) if _is_shared(leaves[0]) else jnp.stack(leaves),
        *states,
    )


def _part(states: TrainState, i: int) -> Callable[[], TrainState]:
    """The state of one run, made when it is asked for."""

    def part() -> TrainState:
        return jax.tree.map(
            # Of a stacked count of steps there is one for all.
            lambda leaf: jnp.array(leaf) if _is_shared(leaf) else leaf[i],
            states,
        )

    return part


def _is_shared(leaf: Any) -> bool:
    """Whether it is a count of steps: the same for all runs, and then a rule's `cond` stays one."""
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
