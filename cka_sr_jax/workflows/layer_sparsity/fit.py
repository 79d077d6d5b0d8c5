"""Training of a fully connected network on a task, and its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from cka_sr_jax.data import batch_indices
from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    from_mlp,
    l1_prox,
    layer_prox,
    to_mlp_params,
    unit_prox,
)
from cka_sr_jax.training.methods import Method, build_method
from cka_sr_jax.training.optimizer import create_optimizer, create_schedule
from cka_sr_jax.training.penalty import create_penalty
from cka_sr_jax.training.step import (
    Metrics,
    TrainState,
    create_state,
    make_train_step,
    penalized_loss,
)
from cka_sr_jax.workflows.layer_sparsity.plan import PathPlan, make_model
from cka_sr_jax.workflows.layer_sparsity.tasks import Split, Task

Layers = tuple[Affine, ...]


class Strengths(NamedTuple):
    """Of the penalties, each of which acts by proximal steps.

    Attributes:
      layer: on the negative part of each hidden layer that may become inactive.
      l1: on all kernels.
      unit: on the incoming weights of each hidden unit.
    """

    layer: float = 0.0
    l1: float = 0.0
    unit: float = 0.0


class Estimate(NamedTuple):
    """A mean over examples and its standard error."""

    mean: float
    standard_error: float


class Trainer(NamedTuple):
    """How a network of some hidden layers is trained.

    Attributes:
      first_state: `(start) -> state`, from these layers or, where they are None, from the
        model's own initial weights.
      step: `(state, batch) -> (state, metrics)`, the batch being {"image": inputs,
        "label": targets}.
    """

    first_state: Callable[[Layers | None], TrainState]
    step: Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]


def fit(
    plan: PathPlan,
    hidden: Sequence[int],
    *,
    start: Layers | None = None,
    strengths: Strengths = Strengths(),  # noqa: B008
    method: Method | None = None,
) -> Layers:
    """Train an MLP of these hidden layers as the plan says, and return its chain.

    Args:
      start: initial weights; None: the model's own, from the config's seed.
      method: of sparse training; None: the config's.
    """
    trainer = make_trainer(plan, hidden, strengths, method)
    train, batch_size = plan.task.train, plan.config.train.batch_size
    data = {"image": train.inputs, "label": train.targets}
    state = trainer.first_state(start)

    @jax.jit
    def train_on(state: TrainState, data: dict[str, Array], indices: Array) -> TrainState:
        def body(state: TrainState, batch: Array) -> tuple[TrainState, None]:
            return trainer.step(state, jax.tree.map(lambda a: a[batch], data))[0], None

        return jax.lax.scan(body, state, indices)[0]

    for first in range(0, plan.steps, plan.steps_per_epoch):
        epoch = range(first, min(first + plan.steps_per_epoch, plan.steps))
        indices = [batch_indices(plan.config.seed, i, len(train.inputs), batch_size) for i in epoch]
        state = train_on(state, data, np.stack(indices))
    return from_mlp(state.params)


def make_trainer(
    plan: PathPlan,
    hidden: Sequence[int],
    strengths: Strengths = Strengths(),  # noqa: B008
    method: Method | None = None,
) -> Trainer:
    """The trainer of an MLP of these hidden layers; arguments as in `fit`."""
    config, task = plan.config, plan.task
    model = make_model(config, task, hidden=tuple(hidden))
    method = method or build_method(config.sparsity, plan.steps, model)
    schedule = create_schedule(config.optimizer, plan.steps)
    names = [f"hidden{j}" for j in range(len(hidden))]
    steps = [  # the l1 step before that of the units: together they are the step of the sum
        (layer_prox, strengths.layer, names if task.nonnegative_input else names[1:]),
        (l1_prox, strengths.l1, [*names, "head"]),
        (unit_prox, strengths.unit, names),
    ]
    parts = [create_optimizer(config.optimizer, schedule)]
    parts += [prox(r, schedule, layers) for prox, r, layers in steps if r and layers]
    tx = method.transform(optax.chain(*parts) if parts[1:] else parts[0], config.seed)

    def first_state(start: Layers | None) -> TrainState:
        if start is None:
            inputs = jnp.zeros((2, task.train.inputs.shape[1]))
            # Without jit, whose compilation takes longer than a small network's training.
            return create_state(model.init(jax.random.key(config.seed), inputs, train=False), tx)
        _, params = to_mlp_params(start)
        return create_state({"params": jax.tree.map(jnp.asarray, params)}, tx)

    def task_loss(outputs: Array, targets: Array) -> tuple[Array, Metrics]:
        return task.loss(outputs, targets).mean(), {}

    pairs = len(hidden) > 1  # of features
    penalty = create_penalty(config.penalty, plan.steps) if pairs else None
    loss, skip = penalized_loss(model, task_loss, penalty), config.train.not_finite == "skip"
    parts = config.train.accumulate
    step = make_train_step(loss, tx, skip_not_finite=skip, accumulate=parts)
    return Trainer(first_state, partial(step, axis_name=None))


def estimate(task: Task, chain: Layers, split: Split) -> Estimate:
    """The mean of the task's error over a split, and its standard error; NaN counts as infinite."""
    errors = np.asarray(_errors(task.error, chain, split), np.float64)
    mean = float(errors.mean())
    deviation = float(errors.std(ddof=1) / math.sqrt(len(errors)))
    return Estimate(math.inf, 0.0) if math.isnan(mean) else Estimate(mean, deviation)


@partial(jax.jit, static_argnums=0)
def _errors(error: Callable[[Array, Array], Array], chain: Layers, split: Split) -> Array:
    return error(apply_chain(chain, split.inputs), split.targets)


def is_finite(chain: Layers) -> bool:
    """Whether training has not diverged."""
    return all(np.isfinite(array).all() for layer in chain for array in layer)
