"""The penalty on features as a term of the loss, and the one that a config describes.

A new similarity gets a line in `SIMILARITIES` and one in `PENALTY_NAMES`; what it cannot do is
refused in `config.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cka_sr_jax.similarity import cca_penalty, cka_penalty, first_samples


class Penalty(NamedTuple):
    """A term of the loss that looks at the model's features: beta * value(features).

    Attributes:
      value: `(features, axis_name) -> scalar`.
      beta: its weight. The number 0 switches the penalty off; an array may hold any number.
      every: added in every `every`-th step only, without rescaling (the CKA-SR paper's
        batches_to_cal).
      end: the first step without it; None: it stays to the last.
      samples: the first examples of each feature, which are all that `value` looks at; None: all.
        Gradients of the others need no memory then.
    """

    value: Callable[[Any, str | None], Array]
    beta: float | Array
    every: int = 1
    end: int | None = None
    samples: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether it can be left out of the program."""
        return isinstance(self.beta, int | float) and self.beta == 0

    def term(
        self, features: Any, step: Int[Array, ""], axis_name: str | None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What to add to the loss at this step, and the value to log: NaN where it is off."""
        features = _first(self.samples, features)
        if self.every == 1 and self.end is None:  # a `cond` holds the gradients of all at once
            value = self.value(features, axis_name)
            return self.beta * value, value
        due = step % self.every == 0
        if self.end is not None:
            due &= step < self.end
        value = jax.lax.cond(
            due,
            lambda features: self.value(features, axis_name),
            lambda features: jnp.zeros(()),
            features,
        )
        return self.beta * value, jnp.where(due, value, jnp.nan)


def _first(samples: int | None, features: Any) -> Any:
    """The features' first samples; other lengths than one are left for `value` to refuse."""
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(features)}
    if samples is None or len(lengths) > 1 or () in lengths:
        return features
    leaves, structure = jax.tree.flatten(features)
    return jax.tree.unflatten(structure, first_samples(leaves, samples))


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
