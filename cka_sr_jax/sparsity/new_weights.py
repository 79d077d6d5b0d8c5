"""How much of the optimizer's update a new weight gets, by its age: against Adam's cold start.

A weight that a rule grows starts with empty slots, while Adam's count of steps says that its
averages have long lost their bias towards 0. With b1 = 0.9 and b2 = 0.999 its first update is then
3.2 times the learning rate, and under a constant gradient later ones up to 6.6 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

NewWeights = Callable[[Float[Array, "..."], Int[Array, ""]], Float[Array, "..."]]


def adam_correction(b1: float = 0.9, b2: float = 0.999) -> NewWeights:
    """The factor that corrects Adam's bias by the age of each weight in place of the step.

      (1 - b1^t) / (1 - b1^a) * sqrt((1 - b2^a) / (1 - b2^t))

    for weights of age a at step t, both counted from 1. But for Adam's epsilon, a new weight is
    then updated as at the beginning of a training. It is for Adam and other optimizers whose update
    is m / sqrt(v) with this correction; AdamW's weight decay is scaled along. The step must be
    Adam's own count, so `optax.MultiSteps` goes around `sparsify`, not inside.

    >>> import optax
    >>> from cka_sr_jax.sparsity import adam_correction, rigl, sparsify
    >>> factor = adam_correction(b1=0.9, b2=0.999)
    >>> [round(float(factor(jnp.float32(age), jnp.int32(10_000))), 3) for age in (1, 10, 10_000)]
    [0.316, 0.153, 1.0]
    >>> tx = sparsify(optax.adamw(1e-3), rigl(0.1, end_step=7500), new_weights=factor)

    Args:
      b1: the optimizer's decay of the first moment, in [0, 1).
      b2: of the second moment, in (0, 1).

    Raises:
      ValueError: a decay out of its range.
    """
    if not 0 <= b1 < 1 or not 0 < b2 < 1:
        raise ValueError(
            f"b1={b1} and b2={b2} must lie in [0, 1) and (0, 1): use those of the optimizer, such "
            "as 0.9 and 0.999."
        )

    def factor(age: Float[Array, "..."], step: Int[Array, ""]) -> Float[Array, "..."]:
        t = step.astype(jnp.float32)
        first = _bias_left(b1, t) / _bias_left(b1, age)
        return first * jnp.sqrt(_bias_left(b2, age) / _bias_left(b2, t))

    return factor


def ramp(updates: int) -> NewWeights:
    """The factor min(age / updates, 1): a new weight's updates grow to full size one by one.

    With 100 updates this is the ramp of SMET (arXiv 2606.00888). It suits every optimizer. Weights
    of the first masks get full updates from the start.

    >>> [float(ramp(100)(jnp.float32(age), jnp.int32(5000))) for age in (1, 50, 200)]
    [0.009999999776482582, 0.5, 1.0]

    Args:
      updates: how many until the full size, in [1, 65535].

    Raises:
      ValueError: another number.
    """
    if not 1 <= updates <= 65_535:
        raise ValueError(f"updates={updates}: expected a number in [1, 65535], such as 100.")

    def factor(age: Float[Array, "..."], step: Int[Array, ""]) -> Float[Array, "..."]:
        return jnp.where(age >= step.astype(jnp.float32), 1.0, jnp.minimum(age / updates, 1.0))

    return factor


def older(kept: Bool[Array, "..."], age: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """One update more, up to the largest that the type holds; 0 where a weight starts anew."""
    count = jnp.where(age == jnp.iinfo(age.dtype).max, age, age + 1)
    return jnp.where(kept, count, jnp.zeros_like(age))


def scaled(
    factor: NewWeights, step: Int[Array, ""], age: UInt[Array, "..."], update: Array
) -> Array:
    """The update times the factor of each weight's age."""
    most = jnp.iinfo(age.dtype).max  # where the count ends
    share = jnp.where(age == most, 1.0, factor(jnp.maximum(age, 1).astype(jnp.float32), step))
    return update * share.astype(update.dtype)


def _bias_left(decay: float, count: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 - decay^count, to float32's precision also where the power is near 1."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones_like(count)
