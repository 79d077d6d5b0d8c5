"""What a config means: the model, the data, the optimizer and the step that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cka_sr_jax.data import (
    Dataset,
    augment,
    batch_indices,
    channel_statistics,
    load_dataset,
    normalize,
)
from cka_sr_jax.models import create_model
from cka_sr_jax.sparsity import Rule, apply_masks, learn_masks, rescale_kept, sparsify, static
from cka_sr_jax.sparsity.gradual import all_kept
from cka_sr_jax.sparsity.rule import maskable_shapes
from cka_sr_jax.training.checkpoints import has_checkpoint
from cka_sr_jax.training.config import RESUMABLE, ConfigError, flatten, read_config, validate
from cka_sr_jax.training.learned_masks import METHODS, ReparametrisedModel, create_method
from cka_sr_jax.training.optimizer import (
    create_optimizer,
    create_penalty,
    create_rule,
    create_schedule,
)
from cka_sr_jax.training.pruning import PRUNERS, prune_before_training
from cka_sr_jax.training.step import TrainState, create_state, make_train_step


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
    cka_end: int  # the first step without the penalty
    mask_updates: np.ndarray  # [steps] bool: the steps at whose end the masks may change
    state: TrainState


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
    schedule = create_schedule(config.optimizer, steps)
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
        steps_per_epoch, round(config.penalty.end * steps), mask_updates, state,
    )  # fmt: skip
    # Tracing the step finds what only shows there, such as a model without a pair of features.
    shard = {"image": images[: len(images) // len(devices)]}
    shard["label"] = jnp.zeros(len(shard["image"]), jnp.int32)
    step = _train_step(experiment, config.seed, config.penalty.beta)
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
        # What a run that was killed as it wrote its config left is no other's work.
        if workdir.exists() and any(path.suffix != ".tmp" for path in workdir.iterdir()):
            raise ConfigError(
                f"--workdir={workdir} holds files and no run: name a new or an empty directory."
            )
        return
    try:
        before = read_config(stored)
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
        every=config.penalty.every,
        end=experiment.cka_end,
        label_smoothing=config.train.label_smoothing,
        sync=config.penalty.sync,
        penalty=create_penalty(config.penalty),
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
    # A key of its own, apart from those of the initialization and the masks.
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


def training_data(experiment: Experiment) -> dict[str, np.ndarray]:
    """What `train_on_examples` takes its batches from."""
    dataset = experiment.dataset
    return {"image": np.asarray(dataset.train_images), "label": dataset.train_labels}


def step_indices(experiment: Experiment, step: int) -> np.ndarray:
    """Which examples a step of the run trains on."""
    config, examples = experiment.config, len(experiment.dataset.train_labels)
    return batch_indices(config.seed, step, examples, config.train.batch_size)
