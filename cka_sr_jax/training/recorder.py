"""What a run keeps on the host: its metrics, evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from cka_sr_jax.sparsity import get_masks
from cka_sr_jax.training.build import Experiment
from cka_sr_jax.training.checkpoints import Checkpoints
from cka_sr_jax.training.config import ConfigError
from cka_sr_jax.training.evaluation import (
    cka_function,
    eval_function,
    feature_groups,
    kernel_positions_of,
    layer_metrics,
    sparsity_metrics,
    stage_means,
)
from cka_sr_jax.training.metrics import MetricWriter, mean_metrics
from cka_sr_jax.training.parallel import replicate
from cka_sr_jax.training.step import TrainState

Evaluators = tuple[Callable[..., dict[str, float]], Callable[[TrainState], np.ndarray | None]]


class Replica(NamedTuple):
    """Which of the runs that train together: their metrics have an axis of runs."""

    number: int
    runs: int


class Recorder:
    """What a run keeps on the host as it trains: its metrics, evaluations and checkpoints.

    Attributes:
      state: what training starts from: the newest checkpoint, or else the initial state.
      start: the step of that.
    """

    def __init__(
        self,
        experiment: Experiment,
        console: Console,
        evaluators: Evaluators | None = None,
        replica: Replica | None = None,
    ) -> None:
        """Open the work directory and read its newest checkpoint.

        Args:
          evaluators: compiled for a run that is alike; None: this run's own.
          replica: which of the runs that train together this is.

        Raises:
          ConfigError: the work directory cannot be made, or its checkpoint does not fit.
        """
        config, self.workdir = experiment.config, experiment.workdir
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--workdir={self.workdir} cannot be made: {error.strerror}."
            ) from error
        write_json(self.workdir / "config.json", config.to_dict())
        self._experiment, self._console, self._replica = experiment, console, replica
        self._checkpoints = Checkpoints(self.workdir, config.checkpoint.keep)
        self.state, self._best, self._seconds, self._flops = _restore(
            experiment, self._checkpoints, console
        )
        self.start = int(self.state.step)
        self._evaluate, self._cka_of = evaluators or (
            eval_function(experiment),
            cka_function(experiment),
        )
        self._groups = feature_groups(experiment)
        self._positions = kernel_positions_of(experiment)
        self._writer = MetricWriter(self.workdir, self.start)
        self._pending: list[dict[str, jax.Array]] = []
        self._sparsity = sparsity_metrics(self.state, self._positions)
        self._final_masks = 1 + max(np.flatnonzero(experiment.mask_updates), default=-1)
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
        experiment, config = self._experiment, self._experiment.config
        self._pending.append(metrics)
        last = done == experiment.steps
        logs = done % config.train.log_every == 0 or last
        # Three forward passes' worth: the backward pass has two products for each of its one.
        self._flops += 3 * self._sparsity["flops"] * config.train.batch_size
        # Counting waits for the device: masks that change in every step are counted at logs.
        if experiment.mask_updates[done - 1] and (logs or not experiment.mask_updates.all()):
            self._sparsity = sparsity_metrics(state(), self._positions)
            epoch = done / experiment.steps_per_epoch
            self._writer.write("masks", done, {"epoch": epoch, **self._sparsity})
        values = self._log(done) if logs else {}
        if done % (config.eval.every or experiment.steps_per_epoch) == 0 or last:
            self._evaluate_at(done, state())
        if done % (config.checkpoint.every or experiment.steps_per_epoch) == 0 or last or save:
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
                "epoch": done / self._experiment.steps_per_epoch,
                **values,
                "learning_rate": float(self._experiment.schedule(done - 1)),
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
        epoch = done / self._experiment.steps_per_epoch
        of_layers = layer_metrics(state, self._positions)
        self._writer.write("layers", done, {"epoch": epoch, **of_layers})
        split, images, labels = _selection_data(self._experiment)
        if len(labels):
            values = self._evaluate(state, images, labels)
            if done >= self._final_masks:  # what is selected has the density that was asked for
                self._best = _update_best(self._best, values["accuracy"], state)
            similarity = stage_means(self._cka_of(state), self._groups)
            self._writer.write(split, done, {"epoch": epoch, **values, **similarity})
            line = f"step {done}: {split} accuracy {values['accuracy']:.4f}"
            if similarity["cka_within_stage"] is not None:
                line += f", within-stage CKA {similarity['cka_within_stage']:.3f}"
            self._console.print(line, highlight=False, soft_wrap=True)
        self._logged += time.perf_counter() - before  # the rate is of training alone

    def _save(self, done: int, state: TrainState) -> None:
        self._checkpoints.save(
            done,
            {
                "state": state,
                "best": self._best,
                "seconds": np.array(self._total_seconds()),
                "flops": np.array(self._flops),
            },
        )

    def _total_seconds(self) -> float:
        runs = self._replica.runs if self._replica else 1
        return self._seconds + (time.perf_counter() - self._began) / runs

    def close(self) -> None:
        """Wait for the last checkpoint, and close the files."""
        self._checkpoints.close()
        self._writer.close()

    def finish(self, state: TrainState) -> tuple[TrainState, float, dict[str, Any]]:
        """Close; the selected weights' state, the seconds of training, and what was selected."""
        self.close()
        seconds = self._total_seconds()
        select = self._experiment.config.eval.select
        if select == "last":
            return state, seconds, {"selected": "last", "step": self._experiment.steps}
        chosen = replicate(
            {name: self._best[name] for name in ("params", "batch_stats", "masks")},
            self._experiment.devices,
        )
        opt_state = state.opt_state._replace(masks=chosen.pop("masks"))
        return (
            dataclasses.replace(state, **chosen, opt_state=opt_state),
            seconds,
            {"selected": select, "step": int(self._best["step"])},
        )


def _selection_data(experiment: Experiment) -> tuple[str, np.ndarray, np.ndarray]:
    """Which images the run is evaluated on as it goes: validation, unless the config says test."""
    data = experiment.dataset
    if experiment.config.eval.select == "best-test":
        return "test-selection", data.test_images, data.test_labels
    return "validation", data.validation_images, data.validation_labels


def _restore(
    experiment: Experiment, checkpoints: Checkpoints, console: Console
) -> tuple[TrainState, dict[str, Any], float, float]:
    state = experiment.state
    best: dict[str, Any] = {}
    if experiment.config.eval.select != "last":
        best = {
            "accuracy": np.array(-1.0),
            "step": np.array(0, np.int32),
            "params": state.params,
            "batch_stats": state.batch_stats,
            "masks": get_masks(state.opt_state),
        }
    if checkpoints.latest_step() is None:
        return state, best, 0.0, 0.0
    template = {"state": state, "best": best, "seconds": np.array(0.0), "flops": np.array(0.0)}
    try:
        stored = checkpoints.restore(template)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    console.print(f"Resuming from step {checkpoints.latest_step()} of {experiment.steps}.")
    return stored["state"], stored["best"], float(stored["seconds"]), float(stored["flops"])


def _update_best(best: dict[str, Any], accuracy: float, state: TrainState) -> dict[str, Any]:
    """`best` or, where this accuracy is higher, a host copy of the state's weights."""
    if not best or accuracy <= best["accuracy"]:
        return best
    return {
        "accuracy": np.array(accuracy),
        "step": np.asarray(state.step),
        "params": jax.device_get(state.params),
        "batch_stats": jax.device_get(state.batch_stats),
        "masks": jax.device_get(get_masks(state.opt_state)),
    }


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or none of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2) + "\n")
    os.replace(temporary, path)


def finite(content: Any) -> Any:
    """The content with None for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
