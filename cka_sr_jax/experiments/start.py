"""Which experiment a config describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from cka_sr_jax.experiments import layer_sparsity, lottery
from cka_sr_jax.training import run


def experiment_of(config: ConfigDict) -> Callable[..., dict[str, Any]]:
    """The function `(config, workdir, console) -> result` that runs what `config` describes."""
    if config.layer_sparsity.strengths:
        return layer_sparsity.run
    if config.lottery.rounds:
        return lottery.run
    return run
