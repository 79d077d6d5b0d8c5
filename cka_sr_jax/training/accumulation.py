"""Gradient accumulation: a batch taken in parts, to save the memory of activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def accumulated_value_and_grad(loss: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """`jax.value_and_grad(loss, has_aux=True)` as the mean over equal parts of the batch.

      value = 1/m sum_k loss(part k),   grads = 1/m sum_k d loss(part k) / d params,   m parts

    The parts are consecutive examples, taken one after the other. Metrics are averaged as the value
    is; the statistics that the loss returns for one part are those that the next one gets.

    Args:
      loss: `(params, batch_stats, batch, step, axis_name) -> (loss, (metrics, batch_stats))`, as
        for `make_train_step`.
      parts: how many; 1 is `jax.value_and_grad` itself.

    Raises:
      ValueError: `parts` below 1; when called, a batch that does not divide.
    """
    if parts < 1:
        raise ValueError(f"accumulate={parts}: expected 1 part of the batch or more.")
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return value_and_grad

    def mean(params: Any, batch_stats: Any, batch: Any, step: Any, axis_name: str | None) -> Any:
        def add_part(carry: Any, part: Any) -> Any:
            batch_stats, total = carry
            (value, (metrics, batch_stats)), grads = value_and_grad(
                params, batch_stats, part, step, axis_name
            )
            return (batch_stats, jax.tree.map(jnp.add, total, grads)), (value, metrics)

        start = (batch_stats, jax.tree.map(jnp.zeros_like, params))
        (batch_stats, total), each = jax.lax.scan(add_part, start, _split(batch, parts))
        value, metrics = jax.tree.map(partial(jnp.mean, axis=0), each)
        return (value, (metrics, batch_stats)), jax.tree.map(lambda g: g / parts, total)

    return mean


def _split(batch: Any, parts: int) -> Any:
    """The batch's arrays [b, ...] as [parts, b / parts, ...]."""
    for size in {len(array) for array in jax.tree.leaves(batch)}:
        if size % parts:
            raise ValueError(
                f"a device's batch of {size} examples does not divide into accumulate={parts} "
                f"parts: use a multiple of {parts}."
            )
    return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
