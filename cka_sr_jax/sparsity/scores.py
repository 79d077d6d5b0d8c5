"""Scores: which weights to drop and which to grow.

A score is a plain function `(key, mask, param, grad) -> array` of one layer. All arrays have the
layer's shape, and higher is more important. As `drop=` it ranks the weights in the mask, of which
the lowest go; as `grow=` it ranks the weights outside, of which the highest come. What it says
elsewhere is ignored. `key` is the layer's own at this update; `grad` is dense; `mask` is the
layer's current one, without what has just been dropped where the score is to grow by.

A score of your own, which prefers weights whose input already has few:

>>> from cka_sr_jax.sparsity import rigl
>>> def scarce_inputs(key, mask, param, grad):
...     count = jnp.sum(mask, axis=-1, keepdims=True)
...     return jnp.abs(grad) / (1 + count)
>>> rule = rigl(density=0.2, end_step=7500, grow=scarce_inputs)
>>> params = {"kernel": jnp.ones((10, 20))}
>>> masks = rule.init(jax.random.key(0), params)
>>> after = rule.update(jax.random.key(1), jnp.int32(100), masks, params, params)
>>> int(after["kernel"].sum())
40
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
    """|dL/dw|, dense: how fast the loss falls along this weight."""
    return jnp.abs(grad)


def random(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """Uniform in [0, 1)."""
    return jax.random.uniform(key, param.shape, jnp.float32)


def sensitivity(key: Array, mask: Array, param: Array, grad: Array) -> Array:
    """|w dL/dw|: to first order, the change of the loss without the weight (Lee et al. 2019)."""
    return jnp.abs(param * grad)


def magnitude_and_gradient(weight: float) -> Score:
    """|w| + weight |dL/dw| (MEST; Yuan et al. 2021, arXiv 2110.14032)."""
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
            f"{param.shape}: return one value per weight, for example by jnp.broadcast_to."
        )
    return result


def get_score(score: str | Score) -> Score:
    """The score of this name in SCORES, or this function with the shape of its results checked.

    Raises:
      ValueError: an unknown name; when called, a result of another shape than the layer's.
    """
    if callable(score):
        return partial(_checked, score)
    if score not in SCORES:
        raise ValueError(unknown("score", score, SCORES))
    return SCORES[score]
