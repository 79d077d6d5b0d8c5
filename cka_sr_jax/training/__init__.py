"""Training: the pure train and eval steps, and one ordinary run from its config to its report.

The way of a run, file by file:

  config.py       a config out of the table in fields.py, and the checks that need no data
  build.py        config -> `RunPlan`: data, model, method, optimizer (methods.py, optimizer.py,
                  penalty.py), and the state of step 0
  checkpoints.py  the newest checkpoint instead, where there is one
  loop.py         the steps (input.py, step.py, parallel.py), with recorder.py, evaluation.py,
                  metrics.py, selection.py and progress.py beside them
  result.py       test set, result.json and the report
  stored.py       the weights and masks of a run that has finished
"""

from cka_sr_jax.training.build import RunPlan, new_state
from cka_sr_jax.training.checkpoints import Checkpoints
from cka_sr_jax.training.config import ConfigError, default_config, validate
from cka_sr_jax.training.methods import Method, build_method
from cka_sr_jax.training.optimizer import create_optimizer, create_schedule
from cka_sr_jax.training.parallel import map_devices, replicate
from cka_sr_jax.training.penalty import Penalty, cka_sr, create_penalty
from cka_sr_jax.training.step import (
    TrainState,
    classification_loss,
    create_state,
    cross_entropy,
    make_eval_step,
    make_train_step,
    penalized_loss,
)
from cka_sr_jax.training.stored import load_variables, load_weights

__all__ = [
    "Checkpoints",
    "ConfigError",
    "Method",
    "Penalty",
    "RunPlan",
    "TrainState",
    "build_method",
    "cka_sr",
    "classification_loss",
    "create_optimizer",
    "create_penalty",
    "create_schedule",
    "create_state",
    "cross_entropy",
    "default_config",
    "load_variables",
    "load_weights",
    "make_eval_step",
    "make_train_step",
    "map_devices",
    "new_state",
    "penalized_loss",
    "replicate",
    "validate",
]
