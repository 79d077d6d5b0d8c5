"""Training: the pure train and eval steps, and `run`, which does all the rest."""

from cka_sr_jax.training.build import prepare
from cka_sr_jax.training.checkpoints import Checkpoints, load_variables
from cka_sr_jax.training.config import ConfigError, default_config
from cka_sr_jax.training.loop import run
from cka_sr_jax.training.optimizer import (
    create_optimizer,
    create_penalty,
    create_rule,
    create_schedule,
)
from cka_sr_jax.training.parallel import map_devices, replicate
from cka_sr_jax.training.step import (
    TrainState,
    create_state,
    cross_entropy,
    make_eval_step,
    make_train_step,
)

__all__ = [
    "Checkpoints",
    "ConfigError",
    "TrainState",
    "create_optimizer",
    "create_penalty",
    "create_rule",
    "create_schedule",
    "create_state",
    "cross_entropy",
    "default_config",
    "load_variables",
    "make_eval_step",
    "make_train_step",
    "map_devices",
    "prepare",
    "replicate",
    "run",
]
