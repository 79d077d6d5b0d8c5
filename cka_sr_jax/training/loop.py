"""`run(config, workdir)`: from a config to a trained sparse network and its report."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.cka import cka_from_hsic, hsic_matrix
from cka_sr_jax.data import (
    Dataset,
    augment,
    batch_indices,
    channel_statistics,
    eval_batches,
    load_dataset,
    normalize,
)
from cka_sr_jax.models import create_model
from cka_sr_jax.report import (
    LayerRow,
    console_table,
    kernel_positions,
    layer_rows,
    read_metrics,
    total_row,
    write_report,
)
from cka_sr_jax.sparsity import (
    Rule,
    apply_masks,
    density,
    epsilon_sparsity,
    get_masks,
    learn_masks,
    mask_metrics,
    rescale_kept,
    sparsify,
    static,
)
from cka_sr_jax.sparsity.gradual import all_kept
from cka_sr_jax.sparsity.rule import maskable_shapes
from cka_sr_jax.training.checkpoints import Checkpoints, has_checkpoint
from cka_sr_jax.training.config import RESUMABLE, ConfigError, flatten, validate
from cka_sr_jax.training.learned_masks import (
    METHODS,
    ReparametrisedModel,
    create_method,
    model_part,
)
from cka_sr_jax.training.metrics import MetricWriter, ProgressReporter, mean_metrics
from cka_sr_jax.training.optimizer import (
    create_optimizer,
    create_penalty,
    create_rule,
    create_schedule,
)
from cka_sr_jax.training.parallel import map_devices, replicate
from cka_sr_jax.training.pruning import PRUNERS, prune_before_training
from cka_sr_jax.training.step import TrainState, create_state, make_eval_step, make_train_step

# The CKA of a trained network is HSIC averaged over this many batches of this many images.
CKA_BATCHES, CKA_BATCH_SIZE = 4, 128
# Thresholds of `epsilon_sparsity` in result.json.
EPSILONS = (1e-4, 1e-3, 1e-2)


class Experiment(NamedTuple):
    """What a config means, once everything in it has been checked."""

    config: ConfigDict
    workdir: Path
    devices: list[jax.Device]
    dataset: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: Any  # a Linen module or a ReparametrisedModel
    schedule: optax.Schedule
    make_tx: Callable[[int | jax.Array], optax.GradientTransformationExtraArgs]  # from the seed
    steps: int
    steps_per_epoch: int
    mask_updates: np.ndarray  # [steps] bool: the steps at whose end the masks may change
    state: TrainState


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Train what `config` describes in `workdir`, evaluate it once on test data, write the report.

    The directory then holds config.json, metrics.jsonl, TensorBoard events, checkpoints/, report/
    and result.json, whose content is returned. A run that was interrupted goes on from its newest
    checkpoint and ends with the parameters it would have had otherwise, bit for bit where the
    hardware computes the same twice; one that is complete is left alone.

    Raises:
      ConfigError: the config cannot work, or `workdir` belongs to another one; nothing is written.
    """
    console = console or Console(soft_wrap=True)
    result_file, report = Path(workdir) / "result.json", Path(workdir) / "report" / "index.html"
    if result_file.exists() and report.exists():
        validate(config, len(jax.local_devices()))
        check_workdir(config, Path(workdir))
        result = json.loads(result_file.read_text())
        console.print(f"This run is complete: test accuracy {result['test']['accuracy']:.4f}.")
        console.print(f"Report: {report}", highlight=False)
        return result
    experiment = prepare(config, workdir)
    _describe(experiment, console)
    state, seconds, selected = train(experiment, console)
    return finish(experiment, state, seconds, selected, console)


def prepare(config: ConfigDict, workdir: str | Path, rule: Rule | None = None) -> Experiment:
    """Check the config and build all it names, without writing anything.

    Args:
      rule: instead of the config's.

    Raises:
      ConfigError: in one sentence, for whatever is wrong with it.
    """
    workdir = Path(workdir)
    devices = jax.local_devices()
    validate(config, len(devices))
    check_workdir(config, workdir)
    try:
        return _build(config, workdir, devices, rule)
    except ValueError as error:  # each part says in its own words what it cannot work with
        raise ConfigError(str(error)) from error


def _build(
    config: ConfigDict, workdir: Path, devices: list[jax.Device], rule: Rule | None
) -> Experiment:
    # Names and options first: reading a data set may take a while and fill its cache.
    _create_model(config, num_classes=10)
    dataset = load_dataset(config.data)
    examples = len(dataset.train_labels)
    if config.train.batch_size > examples:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is more than the {examples} training "
            "images: lower it."
        )
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if not mean and not std:
        mean, std = channel_statistics(dataset.train_images)
        std = tuple(s or 1.0 for s in std)
    steps_per_epoch = examples // config.train.batch_size
    steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
    schedule = create_schedule(config.optimizer, steps, steps_per_epoch)
    model: Any = _create_model(config, dataset.num_classes)
    images = normalize(jnp.asarray(dataset.train_images[: config.train.batch_size]), mean, std)
    inner = create_optimizer(config.optimizer, schedule)
    prune = rescale_kept if config.sparsity.rescale else apply_masks
    try:
        if config.sparsity.rule in METHODS:
            method = create_method(config.sparsity)
            model = ReparametrisedModel(model, method)
            make_tx = lambda seed: learn_masks(inner, method)  # noqa: E731
            mask_updates = np.ones(steps, bool)
            prune = lambda params, masks: params  # noqa: E731  (which are the dense weights)
        else:
            rule = rule or _create_rule(config, workdir, dataset, model, steps, mean, std)
            make_tx = lambda seed: sparsify(inner, rule, seed=seed)  # noqa: E731
            mask_updates = np.broadcast_to(np.asarray(rule.due(jnp.arange(steps))), (steps,))
        tx = make_tx(config.seed)
        state = jax.jit(lambda key: create_state(model, tx, key, images[:2], prune))(
            jax.random.key(config.seed)
        )
    except (TypeError, ArithmeticError) as error:
        raise _bad_options(config, error) from error
    experiment = Experiment(
        config, workdir, devices, dataset, mean, std, model, schedule, make_tx, steps,
        steps_per_epoch, mask_updates, state,
    )  # fmt: skip
    # Tracing the step finds what only shows there, such as a model without a pair of features.
    shard = {"image": images[: len(images) // len(devices)]}
    shard["label"] = jnp.zeros(len(shard["image"]), jnp.int32)
    step = _train_step(experiment, config.seed, config.cka.beta)
    jax.eval_shape(jax.vmap(step, in_axes=(None, 0), axis_name="batch"), state,
                   jax.tree.map(lambda a: a[None], shard))  # fmt: skip
    return experiment


def _create_model(config: ConfigDict, num_classes: int) -> nn.Module:
    taken = {"dtype", "num_classes"} & set(config.model.options)
    if taken:
        raise ConfigError(
            f"model.options.{min(taken)} cannot be set: the classes come from the data, and the "
            "type is model.dtype."
        )
    dtype = jnp.dtype(config.model.dtype)
    try:
        return create_model(config.model.name, num_classes, dtype=dtype, **config.model.options)
    except (TypeError, ArithmeticError) as error:
        raise _bad_options(config, error) from error


def _create_rule(
    config: ConfigDict,
    workdir: Path,
    dataset: Dataset,
    model: nn.Module,
    steps: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Rule:
    """The config's rule; where that prunes before training, `static` with the masks it gives."""
    if config.sparsity.rule not in PRUNERS:
        return create_rule(config.sparsity, steps)
    labels = dataset.train_labels

    def images(indices: np.ndarray) -> jax.Array:
        return normalize(jnp.asarray(dataset.train_images[indices]), mean, std)

    key = jax.random.key(config.seed)
    variables = jax.jit(partial(model.init, train=False))(key, images(np.arange(2)))
    if has_checkpoint(workdir):  # which holds the masks; these only have their shapes
        params = variables["params"]
        return static(all_kept(params, maskable_shapes(params, config.sparsity.exclude)))

    def batch_at(step: int) -> np.ndarray:
        return batch_indices(config.seed, step, len(labels), config.train.batch_size)

    return static(
        prune_before_training(
            config.sparsity, model, variables, images, labels, batch_at, jax.random.fold_in(key, 2)
        )
    )


def _bad_options(config: ConfigDict, error: Exception) -> ConfigError:
    options = config.model.options.to_dict()
    return ConfigError(f"model.options={options} do not make a {config.model.name}: {error}.")


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raise ConfigError unless `workdir` is new, empty, or holds a run of this config."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file: name a directory.")
    stored = workdir / "config.json"
    if not stored.exists():
        if workdir.exists() and any(workdir.iterdir()):
            raise ConfigError(
                f"--workdir={workdir} holds files and no run: name a new or an empty directory."
            )
        return
    try:
        before = flatten(json.loads(stored.read_text()))
    except ValueError:
        raise ConfigError(f"{stored} is damaged: pass another --workdir.") from None
    now = flatten(config)
    for field in before | now:
        if field not in RESUMABLE and before.get(field) != now.get(field):
            raise ConfigError(
                f"--workdir={workdir} belongs to another config: {field} is "
                f"{before.get(field)!r} there and {now.get(field)!r} now; pass another --workdir."
            )


def _train_step(
    experiment: Experiment, seed: int | jax.Array, beta: float | jax.Array
) -> Callable[..., Any]:
    config = experiment.config
    return make_train_step(
        experiment.model,
        experiment.make_tx(seed),
        beta=beta,
        every=config.cka.every,
        label_smoothing=config.train.label_smoothing,
        sync=config.cka.sync,
        penalty=create_penalty(config.cka),
    )


def train_on_examples(
    experiment: Experiment, seed: int | jax.Array, beta: float | jax.Array
) -> Callable[..., Any]:
    """`(state, indices, data, axis_name) -> (state, metrics)` of one device.

    `indices` [batch] name the step's examples in `data`, {"image": uint8 [n, h, w, c], "label"};
    the batch is made on the device.
    """
    config = experiment.config.data
    step = _train_step(experiment, seed, beta)
    # A key of its own, apart from those of the initialisation and the masks.
    augment_key = jax.random.fold_in(jax.random.key(seed), 1)

    def train_on(
        state: TrainState, indices: jax.Array, data: dict[str, jax.Array], axis_name: str | None
    ) -> Any:
        images = augment(
            jax.random.fold_in(augment_key, state.step),
            indices,
            data["image"][indices],
            flip=config.flip,
            pad=config.pad,
            pad_mode=config.pad_mode,
        )
        images = normalize(images, experiment.mean, experiment.std)
        return step(state, {"image": images, "label": data["label"][indices]}, axis_name)

    return train_on


def eval_function(experiment: Experiment) -> Callable[..., dict[str, float]]:
    """`(state, images, labels) -> {"loss", "accuracy"}` over all examples, on all devices."""
    step = make_eval_step(experiment.model)

    def eval_on(
        state: TrainState, shard: dict[str, jax.Array], _: None, axis_name: str | None
    ) -> Any:
        images = normalize(shard["image"], experiment.mean, experiment.std)
        return step(state, {**shard, "image": images}, axis_name)

    mapped = map_devices(eval_on, experiment.devices, parallel=experiment.config.train.parallel)
    devices = len(experiment.devices)

    def evaluate(state: TrainState, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        size = math.ceil(min(experiment.config.eval.batch_size, len(labels)) / devices) * devices
        totals: list[dict[str, jax.Array]] = []
        for indices, weights in eval_batches(len(labels), size):
            shard = {"image": images[indices], "label": labels[indices], "weight": weights}
            totals.append(mapped(state, shard, None))
        sums = {name: sum(float(total[name]) for total in totals) for name in totals[0]}
        return {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sums["correct"] / sums["weight"],
        }

    return evaluate


def feature_groups(experiment: Experiment) -> dict[str, int]:
    """{stage: number of features} that the model sows."""
    features = jax.eval_shape(
        lambda state, images: _features(experiment, state, images),
        experiment.state,
        experiment.dataset.train_images[:2],
    )
    return {stage: len(jax.tree.leaves(features[stage])) for stage in sorted(features)}


def _features(experiment: Experiment, state: TrainState, images: jax.Array) -> dict[str, Any]:
    _, sown = experiment.model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        normalize(images, experiment.mean, experiment.std),
        train=False,
        mutable=["features"],
    )
    features = sown.get("features", {})
    return {stage: features[stage] for stage in sorted(features)}  # as jit orders what it returns


def cka_function(experiment: Experiment) -> Callable[[TrainState], np.ndarray | None]:
    """`state -> [l, l]`, debiased CKA between all features on validation (else training) images.

    HSIC averaged over minibatches before the ratio (Nguyen et al. 2021), in evaluation mode; None
    for a model with fewer than two features or data with fewer than 4 images.
    """
    data = experiment.dataset
    images = data.validation_images if len(data.validation_labels) else data.train_images
    size = min(CKA_BATCH_SIZE, len(images))
    count = max(1, min(CKA_BATCHES, len(images) // size))
    layers = sum(feature_groups(experiment).values())
    hsic = jax.jit(lambda state, batch: hsic_matrix(_features(experiment, state, batch)))

    def matrix(state: TrainState) -> np.ndarray | None:
        if layers < 2 or size < 4:
            return None
        state = jax.tree.map(lambda a: a.addressable_data(0), state)  # one device will do
        batches = [images[i * size : (i + 1) * size] for i in range(count)]
        return np.asarray(cka_from_hsic(sum(hsic(state, batch) for batch in batches) / count))

    return matrix


def stage_means(matrix: np.ndarray | None, groups: dict[str, int]) -> dict[str, float | None]:
    """Mean CKA over the pairs of features of one stage, and of two; None where there is no pair."""
    stage = np.repeat(np.arange(len(groups)), list(groups.values()))
    same = stage[:, None] == stage[None, :]
    kinds = {"within": same & ~np.eye(len(stage), dtype=bool), "cross": ~same}
    return {
        f"cka_{kind}_stage": float(matrix[pairs].mean())
        if matrix is not None and pairs.any()
        else None
        for kind, pairs in kinds.items()
    }


def train(experiment: Experiment, console: Console) -> tuple[TrainState, float, dict[str, Any]]:
    """The training loop; returns the selected weights' state, the seconds, and the selection.

    Raises:
      SystemExit: at SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    config = experiment.config
    recorder = Recorder(experiment, console)
    state = replicate(recorder.state, experiment.devices)
    data = replicate(training_data(experiment), experiment.devices)
    step_function = map_devices(
        train_on_examples(experiment, config.seed, config.cka.beta),
        experiment.devices,
        parallel=config.train.parallel,
        donate_state=True,
    )
    with (
        ProgressReporter(experiment.steps, recorder.start, console) as progress,
        stop_signals() as stop,
    ):
        recorder.start_clock()
        for step in range(recorder.start, experiment.steps):
            state, metrics = step_function(state, step_indices(experiment, step), data)
            values = recorder.record(step + 1, metrics, lambda: state, save=bool(stop))  # noqa: B023
            if values:
                progress.update(step + 1, values)
            if stop:
                recorder.close()
                raise SystemExit(
                    f"Stopped at step {step + 1} of {experiment.steps}; the same command goes on "
                    "there."
                )
    return recorder.finish(state)


def training_data(experiment: Experiment) -> dict[str, np.ndarray]:
    """What `train_on_examples` takes its batches from."""
    dataset = experiment.dataset
    return {"image": np.asarray(dataset.train_images), "label": dataset.train_labels}


def step_indices(experiment: Experiment, step: int) -> np.ndarray:
    """Which examples a step of the run trains on."""
    config, examples = experiment.config, len(experiment.dataset.train_labels)
    return batch_indices(config.seed, step, examples, config.train.batch_size)


class Recorder:
    """What a run keeps on the host as it trains: its metrics, evaluations and checkpoints.

    Attributes:
      state: what training starts from: the newest checkpoint, or else the initial state.
      start: the step of that.
    """

    def __init__(
        self, experiment: Experiment, console: Console, replica: int | None = None
    ) -> None:
        """Open the work directory and read its newest checkpoint.

        Args:
          replica: which entry of the metrics is this run's, where several train together.

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
        self._evaluate, self._cka_of = eval_function(experiment), cka_function(experiment)
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
        values = self._log(done) if logs else {}
        if done % (config.eval.every or experiment.steps_per_epoch) == 0 or last:
            self._evaluate_at(done, state())
        if done % (config.checkpoint.every or experiment.steps_per_epoch) == 0 or last or save:
            self._save(done, state())
        return values

    def _log(self, done: int) -> dict[str, float]:
        steps = jax.device_get(self._pending)  # waits for the device
        if self._replica is not None:
            steps = [{name: v[self._replica] for name, v in step.items()} for step in steps]
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
                "steps_per_second": len(steps) / (now - self._logged),
            },
        )
        self._pending, self._logged = [], now
        return values

    def _evaluate_at(self, done: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # so that training is not timed as evaluation
        before = time.perf_counter()
        epoch = done / self._experiment.steps_per_epoch
        densities = layer_densities(state, self._positions)
        self._writer.write("layers", done, {"epoch": epoch, **densities})
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
                "seconds": np.array(self._seconds + time.perf_counter() - self._began),
                "flops": np.array(self._flops),
            },
        )

    def close(self) -> None:
        """Wait for the last checkpoint, and close the files."""
        self._checkpoints.close()
        self._writer.close()

    def finish(self, state: TrainState) -> tuple[TrainState, float, dict[str, Any]]:
        """Close; the selected weights' state, the seconds of training, and what was selected."""
        self.close()
        seconds = self._seconds + time.perf_counter() - self._began
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


def kernel_positions_of(experiment: Experiment) -> dict[str, int]:
    """{path of each kernel: number of output positions per image}, for FLOPs."""
    model, state = experiment.model, experiment.state
    if isinstance(model, ReparametrisedModel):
        model = model.model
    variables = {"params": model_part(state.params), "batch_stats": state.batch_stats}
    images = jax.ShapeDtypeStruct(experiment.dataset.train_images[:1].shape, jnp.float32)
    return kernel_positions(model, variables, images)


def sparsity_metrics(state: TrainState, positions: dict[str, int]) -> dict[str, float]:
    """`mask_metrics` of the state, and FLOPs of one image's forward pass with the kept weights.

    Neither those nor the run's training FLOPs count the penalty, or the dense gradients that some
    rules grow by.
    """
    metrics = {name: float(value) for name, value in mask_metrics(state.opt_state).items()}
    return {**metrics, "flops": total_row(_layer_rows(state, positions)).flops}


def layer_densities(state: TrainState, positions: dict[str, int]) -> dict[str, float]:
    """{"density/PATH": share of its weights that are kept} of each kernel."""
    rows = _layer_rows(state, positions)
    return {f"density/{row.path}": row.density for row in rows if row.flops_dense}


def _layer_rows(state: TrainState, positions: dict[str, int]) -> list[LayerRow]:
    masks = jax.device_get(get_masks(state.opt_state))
    return layer_rows(model_part(state.params), model_part(masks), positions)


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


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C fills, so that the loop can save before it stops."""
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if received:  # a second one does not wait
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: leave signals to whoever owns them
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(
    experiment: Experiment,
    state: TrainState,
    seconds: float,
    selected: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Evaluate on the test set, then write result.json and the report, and print where it is."""
    dataset, groups = experiment.dataset, feature_groups(experiment)
    evaluate = eval_function(experiment)
    test = evaluate(state, dataset.test_images, dataset.test_labels)
    validation = None
    if len(dataset.validation_labels):
        validation = evaluate(state, dataset.validation_images, dataset.validation_labels)
    matrix = cka_function(experiment)(state)
    rows = _layer_rows(state, kernel_positions_of(experiment))
    total = total_row(rows)
    *_, logged = (
        record
        for record in read_metrics(experiment.workdir / "metrics.jsonl")
        if record["split"] == "train"
    )
    weights = jax.device_get(state.params)
    if isinstance(experiment.model, ReparametrisedModel):
        weights = experiment.model.method.weights(weights)
    result = {
        "test": {**test, **selected},
        "validation": validation,
        **{name: float(value) for name, value in mask_metrics(state.opt_state).items()},
        "parameters": total.parameters,
        "parameters_kept": total.kept,
        "flops": total.flops,
        "flops_dense": total.flops_dense,
        "training_flops": logged["training_flops"],
        **stage_means(matrix, groups),
        "epsilon_sparsity": {
            f"{epsilon:g}": float(epsilon_sparsity(weights, epsilon)) for epsilon in EPSILONS
        },
        "steps": experiment.steps,
        "epochs": experiment.steps / experiment.steps_per_epoch,
        "wall_seconds": seconds,
        "devices": f"{len(experiment.devices)} x {experiment.devices[0].device_kind}",
        "jax": jax.__version__,
    }
    write_json(experiment.workdir / "result.json", result)
    report = write_report(
        experiment.workdir,
        layers=rows,
        cka_matrix=matrix,
        feature_names=[f"{stage}.{i}" for stage, count in groups.items() for i in range(count)],
        feature_groups=[stage for stage, count in groups.items() for _ in range(count)],
    )
    console.print(console_table(rows))
    console.print(
        f"Test accuracy {test['accuracy']:.4f}, density {result['density']:.4f}, "
        f"{seconds:.1f} s of training.",
        highlight=False,
    )
    console.print(f"Report: {report}", soft_wrap=True, highlight=False)
    return result


def _describe(experiment: Experiment, console: Console) -> None:
    config, data = experiment.config, experiment.dataset
    shape = "x".join(map(str, data.train_images.shape[1:]))
    kept = float(density(get_masks(experiment.state.opt_state)))
    if config.sparsity.rule in PRUNERS:  # a run that resumes has the masks in its checkpoint
        kept = config.sparsity.density
    console.print(
        f"{data.name}: {len(data.train_labels)} training, {len(data.validation_labels)} validation "
        f"and {len(data.test_labels)} test images of {shape} in {data.num_classes} classes\n"
        f"{config.model.name}: {sum(p.size for p in jax.tree.leaves(experiment.state.params)):,} "
        f"parameters; rule {config.sparsity.rule}, density {kept:.4f} of its "
        f"kernels; CKA-SR beta {config.cka.beta:g}\n"
        f"{experiment.steps} steps of {config.train.batch_size} images on "
        f"{len(experiment.devices)} x {experiment.devices[0].device_kind}",
        highlight=False,
    )


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or none of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(content), indent=2) + "\n")
    os.replace(temporary, path)


def _finite(content: Any) -> Any:
    """The content with None for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
