"""From a config to a `RunPlan`: the data, the model, the method and the optimizer that it names.

Nothing here looks at the work directory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from cka_sr_jax.training.penalty import Penalty, create_penalty
from cka_sr_jax.training.start import Start, read_start, with_arrays
from cka_sr_jax.training.step import (
    TrainState,
    classification_loss,
    create_state,
    make_train_step,
)


@dataclasses.dataclass(frozen=True, eq=False)
class RunPlan:
    """All that a config names, built and checked. `dataclasses.replace` makes another one of it.

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
    _made: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """`make()`, which is called once for each plan and name: tracing takes long."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

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
        start_of(plan)
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
    devices = len(plan.devices)
    size = plan.config.train.batch_size // devices
    image = jax.ShapeDtypeStruct((size, *plan.dataset.train_images.shape[1:]), jnp.float32)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    numbers = np.uint32(plan.config.seed), np.float32(plan.config.penalty.beta)

    def step(state: Any, batch: Any, seed: Any, beta: Any) -> Any:
        beta = beta if plan.config.penalty.beta else 0.0
        axis_name = "batch" if devices > 1 else None
        return train_step(plan, seed, beta)(state, batch, axis_name)

    if devices > 1:
        step = jax.vmap(step, in_axes=None, axis_size=devices, axis_name="batch")
    jax.eval_shape(step, state, batch, *numbers)


def train_step(
    plan: RunPlan, seed: int | Array, beta: float | Array, may_change: bool = True
) -> Any:
    """The run's step `(state, batch, axis_name) -> (state, metrics)`, with this seed and beta.

    It is traced once for each plan, whatever program it is a part of.

    Args:
      may_change: False for a step at which the masks stay.
    """
    skip, parts = plan.config.train.not_finite == "skip", plan.config.train.accumulate
    without = isinstance(beta, int | float) and beta == 0  # then the program has no penalty

    def step(state: TrainState, batch: Any, seed: Any, beta: Any, axis_name: str | None) -> Any:
        loss = classification_loss(
            plan.model,
            plan.penalty._replace(beta=0.0 if without else beta),
            plan.config.train.label_smoothing,
            plan.method.weights,
            seed,
        )
        tx = plan.method.transform(plan.optimizer, seed)
        made = make_train_step(
            loss, tx, skip_not_finite=skip, accumulate=parts, may_change=may_change
        )
        return made(state, batch, axis_name)

    # Inlined, since XLA makes slower programs of calls.
    jitted = partial(jax.jit, static_argnums=4, inline=True)
    traced = plan.once(("step", without, may_change), lambda: jitted(step))
    # As arrays: a number would be traced as another type.
    numbers = (jnp.asarray(seed, jnp.uint32), jnp.asarray(beta, jnp.float32))
    return lambda state, batch, axis_name: traced(state, batch, *numbers, axis_name)


def state_shapes(plan: RunPlan) -> TrainState:
    """The shapes and types of the run's states, as `jax.ShapeDtypeStruct`."""
    seed, images = jax.ShapeDtypeStruct((), jnp.uint32), _first_images(plan)
    init = partial(_initial_state, plan, plan.method)
    return plan.once("state_shapes", lambda: jax.eval_shape(init, seed, images, {}))


def new_state(plan: RunPlan) -> TrainState:
    """The state of step 0, pruned.

    Raises:
      ConfigError: the method cannot choose its masks.
    """
    method = plan.method
    with config_errors():
        given = start_of(plan).arrays
        if method.prune is not None:
            method = fixed_masks(method.prune(_untrained(plan)), method.start)
        init = jax.jit(partial(_initial_state, plan, method))
        return init(np.uint32(plan.config.seed), _first_images(plan), given)


def start_of(plan: RunPlan) -> Start:
    """The weights of `model.start`, read once."""
    return plan.once("start", lambda: read_start(plan.config, plan.model, _first_images(plan)))


def _initial_state(
    plan: RunPlan, method: Method, seed: Array, images: Array, given: Mapping[str, Array]
) -> TrainState:
    variables = with_arrays(plan.model.init(jax.random.key(seed), images, train=False), given)
    variables = {**variables, "params": method.trained(variables["params"])}
    tx = method.transform(plan.optimizer, seed)
    return create_state(variables, tx, method.start)


def _first_images(plan: RunPlan) -> Array:
    """Two normalized images, for `init`."""
    images = jnp.asarray(plan.dataset.train_images[:2])
    normalized = jax.jit(partial(normalize, mean=plan.mean, std=plan.std))  # in one program
    return plan.once("first_images", lambda: normalized(images))


def _key(plan: RunPlan) -> Array:
    return jax.random.key(plan.config.seed)


def _untrained(plan: RunPlan) -> Untrained:
    """What a pruner may look at: the model with its initial weights, and the training images."""
    config, dataset = plan.config, plan.dataset
    labels = dataset.train_labels
    key = _key(plan)
    init = jax.jit(partial(plan.model.init, train=False))

    def images(indices: np.ndarray) -> Array:
        return normalize(jnp.asarray(dataset.train_images[indices]), plan.mean, plan.std)

    return Untrained(
        model=plan.model,
        variables=with_arrays(init(key, _first_images(plan)), start_of(plan).arrays),
        images=images,
        labels=labels,
        batch_at=lambda step: batch_indices(
            config.seed, step, len(labels), config.train.batch_size
        ),
        key=jax.random.fold_in(key, 2),
    )
