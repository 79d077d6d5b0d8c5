"""Training of a fully connected network on a task, and its error: pure but for the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

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
from cka_sr_jax.models import create_model
from cka_sr_jax.sparsity import Rule, apply_masks, get_masks, sparsify
from cka_sr_jax.training import (
    TrainState,
    create_optimizer,
    create_penalty,
    create_schedule,
    create_state,
)
from cka_sr_jax.workflows.layer_sparsity.tasks import Split, Task

Layers = tuple[Affine, ...]


class Setup(NamedTuple):
    """What a config means, once it has been checked."""

    config: ConfigDict
    workdir: Path
    task: Task
    hidden: tuple[int, ...]
    steps: int
    steps_per_epoch: int


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


def fit(
    setup: Setup,
    hidden: Sequence[int],
    rule: Rule,
    *,
    start: Layers | None = None,
    strengths: Strengths = Strengths(),  # noqa: B008
) -> Layers:
    """Train an MLP of these hidden layers as the config says, and return its chain.

    Args:
      rule: of sparse training.
      start: initial weights; None: the model's own, from the config's seed.
    """
    data, batch_size = setup.task.train, setup.config.train.batch_size
    tx, init, step = make_trainer(setup, hidden, rule, strengths)
    state = init()  # not jit: its compilation takes longer than a small network's training
    if start is not None:
        opt_state = tx.init(to_mlp_params(start)[1])
        params = apply_masks(to_mlp_params(start)[1], get_masks(opt_state))
        params = jax.tree.map(jnp.asarray, params)
        state = TrainState(state.step, params, state.batch_stats, opt_state)

    @jax.jit
    def train_on(state: TrainState, data: Split, indices: Array) -> TrainState:
        def body(state: TrainState, batch: Array) -> tuple[TrainState, None]:
            return step(state, jax.tree.map(lambda a: a[batch], data)), None

        return jax.lax.scan(body, state, indices)[0]

    for first in range(0, setup.steps, setup.steps_per_epoch):
        epoch = range(first, min(first + setup.steps_per_epoch, setup.steps))
        indices = [batch_indices(setup.config.seed, i, len(data.inputs), batch_size) for i in epoch]
        state = train_on(state, data, np.stack(indices))
    return from_mlp(state.params)


def make_trainer(
    setup: Setup,
    hidden: Sequence[int],
    rule: Rule,
    strengths: Strengths = Strengths(),  # noqa: B008
) -> tuple[
    optax.GradientTransformationExtraArgs,
    Callable[[], TrainState],
    Callable[[TrainState, Split], TrainState],
]:
    """The optimizer, the function that makes the initial state, and the step."""
    config, task = setup.config, setup.task
    model = make_model(config, task, hidden=tuple(hidden))
    schedule = create_schedule(config.optimizer, setup.steps)
    names = [f"hidden{j}" for j in range(len(hidden))]
    steps = [  # the l1 step before that of the units: together they are the step of the sum
        (layer_prox, strengths.layer, names if task.nonnegative_input else names[1:]),
        (l1_prox, strengths.l1, [*names, "head"]),
        (unit_prox, strengths.unit, names),
    ]
    parts = [create_optimizer(config.optimizer, schedule)]
    parts += [prox(r, schedule, layers) for prox, r, layers in steps if r and layers]
    tx = sparsify(optax.chain(*parts) if parts[1:] else parts[0], rule, seed=config.seed)

    def init() -> TrainState:
        inputs = jnp.zeros((2, task.train.inputs.shape[1]))
        return create_state(model, tx, jax.random.key(config.seed), inputs)

    return tx, init, _make_step(setup, model, tx)


def _make_step(
    setup: Setup, model: Any, tx: optax.GradientTransformationExtraArgs
) -> Callable[[TrainState, Split], TrainState]:
    """Minimizes loss + beta * CKA-SR; CKA-SR only where there are two hidden layers."""
    options, task = setup.config.penalty, setup.task
    penalty = create_penalty(options)

    def step(state: TrainState, batch: Split) -> TrainState:
        def loss_fn(params: Any) -> Array:
            outputs, sown = model.apply(
                {"params": params}, batch.inputs, train=True, mutable=["features"]
            )
            loss = task.loss(outputs, batch.targets).mean()
            if options.beta and len(model.hidden) > 1:
                loss += options.beta * jax.lax.cond(
                    state.step % options.every == 0,
                    penalty,
                    lambda features: jnp.zeros(()),
                    sown["features"],
                )
            return loss

        grads = jax.grad(loss_fn)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, state.batch_stats, opt_state)

    return step


def make_model(config: ConfigDict, task: Task, **options: Any) -> Any:
    """The config's model for the task's outputs, with these options.

    Raises:
      ValueError: as `create_model`.
    """
    dtype = jnp.dtype(config.model.dtype)
    return create_model(config.model.name, task.outputs, dtype=dtype, **options)


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
