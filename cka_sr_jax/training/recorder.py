"""What a run records as it trains: metrics, evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from cka_sr_jax.report import say
from cka_sr_jax.report.metrics import MetricWriter, mean_metrics
from cka_sr_jax.report.watch import WeightsAndBiases
from cka_sr_jax.training.build import RunPlan
from cka_sr_jax.training.checkpoints import Checkpoints
from cka_sr_jax.training.evaluation import Evaluator, stage_means
from cka_sr_jax.training.hosts import is_first
from cka_sr_jax.training.metrics import PackedMetrics
from cka_sr_jax.training.selection import better_of, selection_images
from cka_sr_jax.training.snapshot import Snapshot
from cka_sr_jax.training.step import TrainState

# Evaluations, at most, that show histograms of the weights and an image of CKA. All sixty of the
# digits demo would cost 3 % of its time.
PICTURES = 20


class Replica(NamedTuple):
    """Which of the runs that train together: their metrics have an axis of runs."""

    number: int
    runs: int


class Divergence(NamedTuple):
    """Where training went wrong.

    Attributes:
      step: the first whose loss, gradients or new weights were not finite, counted from 1.
      before: loss, accuracy and the like of the step before it; None at the first step.
      checkpoint: the step of the newest checkpoint, from before; None where there is none.
    """

    step: int
    before: dict[str, float] | None
    checkpoint: int | None


class Recorder:
    """Writes what a run has to show after each step that is due.

    Attributes:
      best: the best weights so far, None where the run reports its last ones.
      flops: of training so far.
      diverged: what was found the last time that a step was due to be logged, evaluated or saved.
        Nothing is recorded from then on.
      wandb: the W&B run, if the config names a project; `close` leaves it open for the result.
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
        self._seconds, self.flops = float(start.seconds), float(start.flops)
        self.diverged: Divergence | None = None
        self._waited: float | None = None
        config = plan.config.to_dict()  # stored with each checkpoint
        self._checkpoints = Checkpoints(workdir, plan.config.checkpoint.keep, config)
        self.wandb: WeightsAndBiases | None = None
        if is_first() and (project := plan.config.report.wandb):
            self.wandb = WeightsAndBiases(workdir, project, config, partial(say, console))
        also = [self.wandb] if self.wandb else []
        self._writer = MetricWriter(workdir, int(start.state.step), also) if is_first() else None
        if self._writer and self._writer.damaged:
            lines = "line" if self._writer.damaged == 1 else "lines"
            say(
                console,
                f"{workdir / 'metrics.jsonl'} had {self._writer.damaged} damaged {lines}, which "
                "are dropped; the curves of the report have a gap there.",
            )
        self._pending: list[PackedMetrics] = []  # of steps that may still be running
        self._finished: list[dict[str, float]] = []  # of later steps than the last that was logged
        self._before: dict[str, float] | None = None
        self._sparsity = evaluator.sparsity(start.state)
        self._counted = True  # whether that is of the masks as they are now
        self._learning_rate = jax.jit(plan.schedule)
        self._mask_updates = plan.mask_updates
        self._final_masks = 1 + max(np.flatnonzero(self._mask_updates), default=-1)
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self._began = self._logged = time.perf_counter()
        self._saved = self._began  # when the last checkpoint was written
        self._waited_before = 0.0  # of `_waited`, when the last step was logged

    def record(
        self,
        done: int,
        metrics: PackedMetrics,
        state: Callable[[], TrainState],
        save: bool = False,
        waited: float | None = None,
    ) -> dict[str, Any]:
        """What is due after `done` steps; the values that were logged now, if any were.

        Those of an evaluation are "selection_accuracy" and "cka_within_stage".

        Args:
          metrics: of this step.
          state: after this step; called where it is needed only.
          save: whether a checkpoint is due whatever the step.
          waited: seconds for which the devices have waited for data since `start_clock`; None of a
            set in memory.
        """
        self._waited = waited
        if self.diverged:
            return {}
        plan, config = self._plan, self._plan.config
        self._pending.append(metrics)
        last = done == plan.steps
        logs = done % config.train.log_every == 0 or last
        evaluates = done % (config.eval.every or plan.steps_per_epoch) == 0 or last
        every = config.checkpoint.every
        saves = last or save or (every > 0 and done % every == 0)
        if logs or evaluates or saves:
            self._look_for_divergence(done)
            if self.diverged:
                return {}
        # Three forward passes' worth: the backward pass has two products for each of its one.
        self.flops += 3 * self._sparsity.flops_in_training * config.train.batch_size
        # Counting waits for the device: masks that change in every step are counted at logs.
        skips = config.train.not_finite == "skip" and self._mask_updates.any()
        # A skipped step leaves its change of the masks to a later one.
        self._counted &= not (self._mask_updates[done - 1] or skips)
        if self._mask_updates[done - 1] and (logs or not self._mask_updates.all()):
            self._sparsity, self._counted = self._evaluator.sparsity(state()), True
            epoch = done / plan.steps_per_epoch
            self._write("masks", done, {"epoch": epoch, **self._sparsity.total})
        values, best = self._log(done) if logs else {}, self.best
        if evaluates:
            values = values | self._evaluate_at(done, state())
        if saves or self.best is not best:  # the best weights are nowhere else
            self._save(done, state())
        return values

    def _write(self, split: str, step: int, values: dict[str, float | None]) -> None:
        if self._writer:
            self._writer.write(split, step, values)

    def _look_for_divergence(self, done: int) -> None:
        """Find the first step whose numbers were not finite, unless such steps are skipped."""
        run = None if self._replica is None else self._replica.number
        steps = [step.unpack(run) for step in jax.device_get(self._pending)]  # waits for the device
        self._pending = []
        if self._plan.config.train.not_finite == "stop":
            for number, step in enumerate(steps):
                if not step["finite"]:
                    first = done - len(steps) + number + 1
                    self.diverged = Divergence(first, self._before, self._checkpoints.latest_step())
                    return
                self._before = {k: v for k, v in step.items() if k != "finite"}
        self._finished += steps

    def _log(self, done: int) -> dict[str, float]:
        steps, self._finished = self._finished, []
        values = mean_metrics(steps)
        if steps and values.get("skipped_steps") == len(steps):
            say(self._console, f"step {done}: none of the last {len(steps)} steps was finite, so "
                "all were skipped.")  # fmt: skip
        now = time.perf_counter()
        elapsed = now - self._logged
        self._write(
            "train",
            done,
            {
                "epoch": done / self._plan.steps_per_epoch,
                **values,
                "learning_rate": float(self._learning_rate(done - 1)),
                **self._sparsity.total,
                "training_flops": self.flops,
                # Of a group the clock also counts what the other runs' records take.
                **({} if self._replica else {"steps_per_second": len(steps) / elapsed}),
                **(
                    {}
                    if self._waited is None
                    else {"data_wait": (self._waited - self._waited_before) / elapsed}
                ),
            },
        )
        self._waited_before = self._waited or 0.0
        self._logged = now
        return values

    def _evaluate_at(self, done: int, state: TrainState) -> dict[str, Any]:
        jax.block_until_ready(state)  # so that training is not timed as evaluation
        before = time.perf_counter()
        epoch = done / self._plan.steps_per_epoch
        sparsity = self._sparsity if self._counted else self._evaluator.sparsity(state)
        self._write("layers", done, {"epoch": epoch, **sparsity.layers})
        draws = self._draws_at(done)
        if self._writer and draws:
            self._writer.show_weights(done, self._evaluator.kept_weights(state))
        split, images, labels = selection_images(self._plan)
        found: dict[str, Any] = {}
        if len(labels):
            values = self._evaluator.accuracy(state, images, labels)
            if done >= self._final_masks:  # selected weights have the density of the config
                self.best = better_of(self.best, values["accuracy"], state)
            matrix = self._evaluator.cka(state)
            similarity = stage_means(matrix, self._evaluator.features)
            self._write(split, done, {"epoch": epoch, **values, **similarity})
            if draws and (ranks := self._evaluator.ranks(state)):
                self._write("ranks", done, {"epoch": epoch, **ranks})
            if self._writer and draws and matrix is not None:
                self._writer.show_cka(done, matrix, self._evaluator.feature_groups)
            found = {"selection_accuracy": values["accuracy"], **similarity}
        self._logged += time.perf_counter() - before  # the rate is of training alone
        return found

    def _draws_at(self, done: int) -> bool:
        """Whether this evaluation shows pictures: PICTURES of a run do, with the last one."""
        plan = self._plan
        before = done - (plan.config.eval.every or plan.steps_per_epoch)
        return done == plan.steps or done * PICTURES // plan.steps > before * PICTURES // plan.steps

    def _save(self, done: int, state: TrainState) -> None:
        seconds, flops = np.array(self.seconds()), np.array(self.flops)
        if is_first():
            self._checkpoints.save(done, Snapshot(state, self.best, seconds, flops))
        self._saved = time.perf_counter()

    @property
    def save_is_due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that the next step is saved.

        The caller asks, since all that train together, processes or runs, save at the same step.
        """
        config = self._plan.config.checkpoint
        return not config.every and time.perf_counter() - self._saved >= config.seconds

    def seconds(self) -> float:
        """Of training so far, of which a run in a group is booked its share."""
        runs = self._replica.runs if self._replica else 1
        return self._seconds + (time.perf_counter() - self._began) / runs

    @property
    def data_wait(self) -> float | None:
        """Share of the time since `start_clock` that was waited for data; None as in `record`."""
        if self._waited is None:
            return None
        return self._waited / (time.perf_counter() - self._began)

    def close(self) -> None:
        """Wait for the last checkpoint, and close the files."""
        self._checkpoints.close()
        if self._writer:
            self._writer.close()
        if self.wandb and self._replica:  # a run of a group gets its result in a start of its own
            self.wandb.close()

    def __enter__(self) -> Recorder:
        """Nothing; the files are open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close the files after an error, such as a full disk; `close` is for all else.

        What ends training early, a signal too, ends the W&B run.
        """
        if isinstance(error, Exception) and self._writer:
            self._writer.close()
        if error is not None and self.wandb:
            self.wandb.close(failed=True)
