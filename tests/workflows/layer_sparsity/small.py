"""A config whose runs take seconds, and chains of random layers."""

import itertools

import numpy as np

from cka_sr_jax.layer_sparsity import (
    Affine,
)
from cka_sr_jax.training import default_config


def small_config(**fields):
    config = default_config()
    config.model.options.hidden = (12,) * 3
    config.train.steps = 40
    config.train.batch_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.sparsity.rule = "dense"
    config.penalty.beta = 0.0
    config.layer_sparsity.strengths = (100.0,)
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def random_chain(widths, seed=0, nonnegative=()):
    rng = np.random.default_rng(seed)
    layers = []
    for i, (m, n) in enumerate(itertools.pairwise(widths)):
        arrays = [rng.normal(size=(m, n)), rng.normal(size=n)]
        if i in nonnegative:
            arrays = [np.abs(array) for array in arrays]
        layers.append(Affine(*(array.astype(np.float32) for array in arrays)))
    return tuple(layers)
