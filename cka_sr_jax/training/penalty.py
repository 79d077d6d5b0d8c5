"""The penalty on the features that a config describes: which similarity, and when it is on.

A new similarity gets a line in `SIMILARITIES` and one in `PENALTY_NAMES`; what it cannot do is
refused in `config.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax.similarity import cca_penalty, cka_penalty
from cka_sr_jax.training.step import Penalty


def create_penalty(config: ConfigDict, steps: int) -> Penalty:
    """The penalty of a run's `config.penalty`.

    Args:
      steps: length of the run, of which `config.end` is a share.
    """
    value = SIMILARITIES[config.similarity](config)
    end = None if config.end == 1 else round(config.end * steps)
    samples = None if config.samples == -1 else config.samples * config.batches
    return Penalty(value, config.beta, config.every, end, samples)


def cka_sr(
    beta: float | Array,
    *,
    every: int = 1,
    end: int | None = None,
    sync: bool = False,
    **options: Any,
) -> Penalty:
    """CKA-SR as a `Penalty`, for `classification_loss`.

      loss = classification_loss(model, cka_sr(1e-4, samples=8, every=5))

    Args:
      beta, every, end: as in `Penalty`.
      sync: average HSIC over the devices before the CKA ratio. Otherwise each device adds its own
        CKA, as the reference code does.
      options: of `cka_penalty`.
    """

    def value(features: Any, axis_name: str | None) -> Array:
        return cka_penalty(features, axis_name=axis_name if sync else None, **options)

    samples = options.get("samples")
    examples = None if samples is None else samples * options.get("batches", 1)
    return Penalty(value, beta, every, end, examples)


def _cka(config: ConfigDict) -> Callable[[Any, str | None], Array]:
    options = {"batches": config.batches, "kernel": config.kernel, **_options(config)}
    return cka_sr(config.beta, sync=config.sync, **options).value


def _cca(config: ConfigDict) -> Callable[[Any, str | None], Array]:
    options = _options(config)
    return lambda features, axis_name: cca_penalty(features, **options)


def _options(config: ConfigDict) -> dict[str, Any]:
    return {
        "samples": None if config.samples == -1 else config.samples,
        "pairs": config.pairs,
        "decay": config.decay,
        "energy": config.energy,
        "reduction": config.reduction,
        "debiased": config.debiased,
    }


SIMILARITIES = {"cka": _cka, "cca": _cca}
# How the terminal calls the penalty on each.
PENALTY_NAMES = {"cka": "CKA-SR", "cca": "CCA"}
