"""Scores: which weights to drop and which to grow.

A score is a plain function `(key, mask, param, grad) -> array` of one layer: equal shapes in and
out, higher is more important. A drop score ranks the weights in `mask` (the lowest go), a grow
score those outside (the highest come); what it says elsewhere is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cka_sr_jax._errors import unknown

Score = Callable[[Array, Array, Array, Array], Array]


def magnitude(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """|w|."""
    return jnp.abs(param)


def gradient(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """|dL/dw|, dense: how fast the loss would fall along this weight."""
    return jnp.abs(grad)


def random(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """Uniform in [0, 1)."""
    return jax.random.uniform(key, param.shape)


def sensitivity(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """|w dL/dw|: the first-order change of the loss when the weight goes (Lee et al. 2019)."""
    return jnp.abs(param * grad)


def magnitude_and_gradient(weight: float) -> Score:
    """|w| + weight * |dL/dw| (Yuan et al. 2021, MEST)."""
    return lambda key, mask, param, grad: jnp.abs(param) + weight * jnp.abs(grad)


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "gradient": gradient,
    "random": random,
    "sensitivity": sensitivity,
}


def _checked(score: Score, key: Array, mask: Array, param: Array, grad: Array) -> Array:
    result = score(key, mask, param, grad)
    if jnp.shape(result) != param.shape:
        raise ValueError(
            f"a score of shape {jnp.shape(result)} does not rank the weights of a layer of shape "
            f"{param.shape}: return one value for each weight, as jnp.broadcast_to does."
        )
    return result


def get_score(score: str | Score) -> Score:
    """A score given by its name in SCORES or as a function, whose result's shape is checked.

    Raises:
      ValueError: an unknown name; when called, a result that is not of the layer's shape.
    """
    if callable(score):
        return partial(_checked, score)
    if score not in SCORES:
        raise ValueError(unknown("score", score, SCORES))
    return SCORES[score]
