"""From a config to the plan of a layer-sparsity experiment: its data, its network, its length."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from cka_sr_jax.models import create_model
from cka_sr_jax.training.config import ConfigError, is_layer_sparsity
from cka_sr_jax.training.methods import RULE_NAMES, keeps_given_masks
from cka_sr_jax.workflows.layer_sparsity.tasks import Task, load_task


class PathPlan(NamedTuple):
    """All that a config names, built and checked.

    Attributes:
      hidden: width of each hidden layer.
      steps, steps_per_epoch: of each training.
    """

    config: ConfigDict
    task: Task
    hidden: tuple[int, ...]
    steps: int
    steps_per_epoch: int


def build_plan(config: ConfigDict) -> PathPlan:
    """The plan of a config that `validate` has passed.

    Raises:
      ConfigError, ValueError: in one sentence, for whatever cannot work.
    """
    _check(config)
    task = load_task(config)
    examples, batch_size = len(task.train.inputs), config.train.batch_size
    if batch_size > examples:
        raise ConfigError(
            f"train.batch_size={batch_size} is more than the {examples} training examples: lower "
            "it."
        )
    steps_per_epoch = examples // batch_size
    steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
    hidden = tuple(make_model(config, task, **config.model.options).hidden)
    by_score = config.layer_sparsity.score != "none"
    if by_score and len(hidden) < 2:
        raise ConfigError(
            f"model.options.hidden={hidden} has no layer to remove by a score, which leaves one "
            "hidden layer: give two or more."
        )
    if len(hidden) < (1 if task.nonnegative_input else 2):
        raise ConfigError(
            f"model.options.hidden={hidden} has no layer that can merge: give two hidden layers or "
            "more, or one with inputs that are never negative (data.mean=(0.0,) and "
            "data.std=(1.0,))."
        )
    return PathPlan(config, task, hidden, steps, steps_per_epoch)


def make_model(config: ConfigDict, task: Task, **options: Any) -> Any:
    """The config's model for the task's outputs, with these options.

    Raises:
      ValueError: as `create_model`.
    """
    dtype = jnp.dtype(config.model.dtype)
    return create_model(config.model.name, task.outputs, dtype=dtype, **options)


def _check(config: ConfigDict) -> None:
    if not is_layer_sparsity(config):
        raise ConfigError(
            "layer_sparsity.strengths is empty, which is an ordinary run: give the path of the "
            "penalty's strengths, for example (0.01, 0.1), or a layer_sparsity.score."
        )
    if config.model.name != "mlp":
        raise ConfigError(
            f"layer_sparsity merges the layers of an MLP and model.name is {config.model.name!r}: "
            "use 'mlp'."
        )
    if not keeps_given_masks(config.sparsity.rule):
        raise ConfigError(
            f"layer_sparsity does not train with sparsity.rule={config.sparsity.rule!r}: use one "
            f"of {', '.join(RULE_NAMES)}."
        )
    if config.sparsity.rescale:
        raise ConfigError("layer_sparsity does not rescale: set sparsity.rescale to False.")
    if config.eval.select != "last":
        raise ConfigError(
            f"layer_sparsity takes the weights of the last step and eval.select is "
            f"{config.eval.select!r}: set it to 'last'."
        )
    if config.lottery.rounds:
        raise ConfigError(
            f"layer_sparsity and lottery.rounds={config.lottery.rounds} are two experiments: set "
            "lottery.rounds to 0, or layer_sparsity.strengths to () and its score to 'none'."
        )
    if config.data.flip or config.data.pad:
        raise ConfigError(
            "layer_sparsity trains on images as they are: set data.flip to False and data.pad to 0."
        )
