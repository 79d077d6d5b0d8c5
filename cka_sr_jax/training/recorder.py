"""What a run records as it trains: metrics, evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from cka_sr_jax.report.metrics import MetricWriter, mean_metrics
from cka_sr_jax.training.build import RunPlan
from cka_sr_jax.training.checkpoints import Checkpoints, Snapshot
from cka_sr_jax.training.evaluation import Evaluator
from cka_sr_jax.training.selection import better_of, selection_images
from cka_sr_jax.training.step import TrainState


class Replica(NamedTuple):
    """Which of the runs that train together: their metrics have an axis of runs."""

    number: int
    runs: int


class Recorder:
    """Writes what a run has to show after each step that is due.

    Attributes:
      best: the best weights so far, None where the run reports its last ones.
    """

    def __init__(
        self,
        plan: RunPlan,
        workdir: Path,
        start: Snapshot,
        evaluator: Evaluator,
        console: Console,
        replica: Replica | None = None,
    ) -> None:
        """Open the metrics and the checkpoints of a work directory that is there.

        Args:
          start: what training starts from; metrics of later steps are dropped.
          replica: of a run that trains together with others.
        """
        self._plan, self._console, self._replica = plan, console, replica
        self._evaluator = evaluator
        self.best = start.best
        self._seconds, self._flops = float(start.seconds), float(start.flops)
        self._checkpoints = Checkpoints(workdir, plan.config.checkpoint.keep)
        self._writer = MetricWriter(workdir, int(start.state.step))
        self._pending: list[dict[str, jax.Array]] = []
        self._sparsity = evaluator.sparsity(start.state)
        self._mask_updates = plan.mask_updates
        self._final_masks = 1 + max(np.flatnonzero(self._mask_updates), default=-1)
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self._began = self._logged = time.perf_counter()

    def record(
        self,
        done: int,
        metrics: dict[str, jax.Array],
        state: Callable[[], TrainState],
        save: bool = False,
    ) -> dict[str, float]:
        """What is due after `done` steps; the training metrics, if they were logged now.

        Args:
          metrics: of this step.
          state: after this step; called where it is needed only.
          save: whether a checkpoint is due whatever the step.
        """
        plan, config = self._plan, self._plan.config
        self._pending.append(metrics)
        last = done == plan.steps
        logs = done % config.train.log_every == 0 or last
        # Three forward passes' worth: the backward pass has two products for each of its one.
        self._flops += 3 * self._sparsity["flops"] * config.train.batch_size
        # Counting waits for the device: masks that change in every step are counted at logs.
        if self._mask_updates[done - 1] and (logs or not self._mask_updates.all()):
            self._sparsity = self._evaluator.sparsity(state())
            epoch = done / plan.steps_per_epoch
            self._writer.write("masks", done, {"epoch": epoch, **self._sparsity})
        values = self._log(done) if logs else {}
        if done % (config.eval.every or plan.steps_per_epoch) == 0 or last:
            self._evaluate_at(done, state())
        if done % (config.checkpoint.every or plan.steps_per_epoch) == 0 or last or save:
            self._save(done, state())
        return values

    def _log(self, done: int) -> dict[str, float]:
        steps = jax.device_get(self._pending)  # waits for the device
        if self._replica is not None:
            steps = [{k: v[self._replica.number] for k, v in step.items()} for step in steps]
        values = mean_metrics(steps)
        now = time.perf_counter()
        self._writer.write(
            "train",
            done,
            {
                "epoch": done / self._plan.steps_per_epoch,
                **values,
                "learning_rate": float(self._plan.schedule(done - 1)),
                **self._sparsity,
                "training_flops": self._flops,
                # Of a group the clock also counts what the other runs' records take.
                **(
                    {} if self._replica else {"steps_per_second": len(steps) / (now - self._logged)}
                ),
            },
        )
        self._pending, self._logged = [], now
        return values

    def _evaluate_at(self, done: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # so that training is not timed as evaluation
        before = time.perf_counter()
        epoch = done / self._plan.steps_per_epoch
        of_layers = self._evaluator.layer_metrics(state)
        self._writer.write("layers", done, {"epoch": epoch, **of_layers})
        split, images, labels = selection_images(self._plan)
        if len(labels):
            values = self._evaluator.accuracy(state, images, labels)
            if done >= self._final_masks:  # selected weights have the density of the config
                self.best = better_of(self.best, values["accuracy"], state)
            similarity = self._evaluator.similarity(state)
            self._writer.write(split, done, {"epoch": epoch, **values, **similarity})
            line = f"step {done}: {split} accuracy {values['accuracy']:.4f}"
            if similarity["cka_within_stage"] is not None:
                line += f", within-stage CKA {similarity['cka_within_stage']:.3f}"
            self._console.print(line, highlight=False, soft_wrap=True)
        self._logged += time.perf_counter() - before  # the rate is of training alone

    def _save(self, done: int, state: TrainState) -> None:
        seconds, flops = np.array(self.seconds()), np.array(self._flops)
        self._checkpoints.save(done, Snapshot(state, self.best, seconds, flops))

    def seconds(self) -> float:
        """Of training so far, of which a run in a group is booked its share."""
        runs = self._replica.runs if self._replica else 1
        return self._seconds + (time.perf_counter() - self._began) / runs

    def close(self) -> None:
        """Wait for the last checkpoint, and close the files."""
        self._checkpoints.close()
        self._writer.close()
