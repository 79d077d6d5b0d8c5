"""Which experiment a config describes."""

from __future__ import annotations

from types import ModuleType

from ml_collections import ConfigDict

from cka_sr_jax.training import loop
from cka_sr_jax.workflows import lottery
from cka_sr_jax.workflows.layer_sparsity import path as layer_sparsity


def experiment_of(config: ConfigDict) -> ModuleType:
    """The module whose `run(config, workdir, console)` does what `config` describes.

    Its `prepare(config, workdir)` checks all of that without writing anything.
    """
    if config.layer_sparsity.strengths:
        return layer_sparsity
    return lottery if config.lottery.rounds else loop
