"""From a config to a `RunPlan`: the data, the model, the method and the optimizer that it names.

Nothing here looks at the work directory.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax.data import (
    Dataset,
    batch_indices,
    channel_statistics,
    load_dataset,
    normalize,
)
from cka_sr_jax.models import UnknownOptionError, create_model
from cka_sr_jax.training.config import ConfigError, config_errors
from cka_sr_jax.training.methods import Method, Untrained, build_method, fixed_masks
from cka_sr_jax.training.optimizer import create_optimizer, create_schedule
from cka_sr_jax.training.penalty import create_penalty
from cka_sr_jax.training.step import (
    Penalty,
    TrainState,
    classification_loss,
    create_state,
    make_train_step,
)


class RunPlan(NamedTuple):
    """All that a config names, built and checked.

    Attributes:
      devices: those that train.
      mean, std: per channel, with which images are normalized.
      schedule: `(step) -> learning rate`.
      steps, steps_per_epoch: of the run.
    """

    config: ConfigDict
    devices: list[jax.Device]
    dataset: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: nn.Module
    method: Method
    penalty: Penalty
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    steps: int
    steps_per_epoch: int

    @property
    def mask_updates(self) -> np.ndarray:
        """[steps] bool: the steps at whose end the masks may change."""
        return np.asarray(self.method.changes(jnp.arange(self.steps)))


def build_plan(config: ConfigDict) -> RunPlan:
    """The plan of an ordinary run.

    Args:
      config: one that `validate` has passed.

    Raises:
      ConfigError: what only data, model or method can tell, in one sentence.
    """
    with config_errors():
        # Names and options first: reading a data set may take a while and fill its cache.
        model_of(config, num_classes=10)
        plan = _build(config)
        _trace(plan)
        return plan


def _build(config: ConfigDict) -> RunPlan:
    dataset = load_dataset(config.data)
    examples, batch_size = len(dataset.train_labels), config.train.batch_size
    if batch_size > examples:
        raise ConfigError(
            f"train.batch_size={batch_size} is more than the {examples} training images: lower it."
        )
    mean, std = image_statistics(config, dataset)
    steps_per_epoch = examples // batch_size
    steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
    schedule = create_schedule(config.optimizer, steps)
    model = model_of(config, dataset.num_classes)
    return RunPlan(
        config=config,
        devices=jax.devices(),
        dataset=dataset,
        mean=mean,
        std=std,
        model=model,
        method=build_method(config.sparsity, steps, model),
        penalty=create_penalty(config.penalty, steps),
        schedule=schedule,
        optimizer=create_optimizer(config.optimizer, schedule),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
    )


def image_statistics(
    config: ConfigDict, dataset: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The config's mean and standard deviation per channel, else those of the training images."""
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if mean or std:
        return mean, std
    mean, std = channel_statistics(np.asarray(dataset.train_images))
    return mean, tuple(s or 1.0 for s in std)


def model_of(config: ConfigDict, num_classes: int) -> nn.Module:
    """The model that a run's config names.

    Raises:
      ConfigError: options that do not make such a model.
    """
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
    except UnknownOptionError as error:
        raise ConfigError(
            f"{str(error).rstrip('.?')}; if the config file sets it for another model, name a file "
            f"that is made for {config.model.name}."
        ) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _bad_options(config: ConfigDict, error: Exception) -> ConfigError:
    options = config.model.options.to_dict()
    return ConfigError(f"model.options={options} do not make a {config.model.name}: {error}.")


def _trace(plan: RunPlan) -> None:
    """Trace the state and a step, to find mistakes that only tracing shows.

    For example a pattern that matches no parameter, or a model without a pair of features.
    """
    try:
        state = state_shapes(plan)
    except (TypeError, ArithmeticError) as error:
        raise _bad_options(plan.config, error) from error
    size = plan.config.train.batch_size // len(plan.devices)
    image = jax.ShapeDtypeStruct((1, size, *plan.dataset.train_images.shape[1:]), jnp.float32)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((1, size), jnp.int32)}
    step = train_step(plan, plan.config.seed, plan.config.penalty.beta)
    jax.eval_shape(jax.vmap(step, in_axes=(None, 0), axis_name="batch"), state, batch)


def train_step(
    plan: RunPlan, seed: int | Array, beta: float | Array, may_change: bool = True
) -> Any:
    """The run's step `(state, batch, axis_name) -> (state, metrics)`, with this seed and beta.

    Args:
      may_change: False for a step at which the masks stay.
    """
    loss = classification_loss(
        plan.model,
        plan.penalty._replace(beta=beta),
        plan.config.train.label_smoothing,
        plan.method.weights,
    )
    skip = plan.config.train.not_finite == "skip"
    tx = plan.method.transform(plan.optimizer, seed)
    parts = plan.config.train.accumulate
    return make_train_step(loss, tx, skip_not_finite=skip, accumulate=parts, may_change=may_change)


def state_shapes(plan: RunPlan) -> TrainState:
    """The shapes and types of the run's states, as `jax.ShapeDtypeStruct`."""
    seed, images = jax.ShapeDtypeStruct((), jnp.uint32), _first_images(plan)
    return jax.eval_shape(partial(_initial_state, plan, plan.method), seed, images)


def new_state(plan: RunPlan) -> TrainState:
    """The state of step 0, pruned.

    Raises:
      ConfigError: the method cannot choose its masks.
    """
    method = plan.method
    with config_errors():
        if method.prune is not None:
            method = fixed_masks(method.prune(_untrained(plan)), method.start)
        init = jax.jit(partial(_initial_state, plan, method))
        return init(np.uint32(plan.config.seed), _first_images(plan))


def _initial_state(plan: RunPlan, method: Method, seed: Array, images: Array) -> TrainState:
    variables = plan.model.init(jax.random.key(seed), images, train=False)
    variables = {**variables, "params": method.trained(variables["params"])}
    tx = method.transform(plan.optimizer, seed)
    return create_state(variables, tx, method.start)


def _first_images(plan: RunPlan) -> Array:
    return normalize(jnp.asarray(plan.dataset.train_images[:2]), plan.mean, plan.std)


def _key(plan: RunPlan) -> Array:
    return jax.random.key(plan.config.seed)


def _untrained(plan: RunPlan) -> Untrained:
    """What a pruner may look at: the model with its initial weights, and the training images."""
    config, dataset = plan.config, plan.dataset
    labels = dataset.train_labels
    key = _key(plan)

    def images(indices: np.ndarray) -> Array:
        return normalize(jnp.asarray(dataset.train_images[indices]), plan.mean, plan.std)

    return Untrained(
        model=plan.model,
        variables=jax.jit(partial(plan.model.init, train=False))(key, _first_images(plan)),
        images=images,
        labels=labels,
        batch_at=lambda step: batch_indices(
            config.seed, step, len(labels), config.train.batch_size
        ),
        key=jax.random.fold_in(key, 2),
    )
