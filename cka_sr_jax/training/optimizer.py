"""The optimizer and the learning rate that a config describes."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def create_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: constant, step or cosine, after a linear warm-up.

    Args:
      config: a run's `config.optimizer`.
      steps: length of the run, of which `config.warmup` and `config.decay_at` are shares.
    """
    peak = config.learning_rate
    warmup = round(config.warmup * steps)
    if config.schedule == "step":
        boundaries = {round(share * steps): config.decay_factor for share in config.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    elif config.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(peak, max(1, steps - warmup))
        main = lambda step: cosine(jnp.maximum(step - warmup, 0))  # noqa: E731
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    return lambda step: main(step) * jnp.minimum(1.0, (step + 1) / warmup)


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD (weight decay added to the gradient, as PyTorch does) or AdamW.

    Args:
      config: a run's `config.optimizer`.
    """
    if config.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
        )
    return optax.adamw(schedule, weight_decay=config.weight_decay)
