"""`Rule`, the type of every sparse-training rule, and what the rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import Distribution
from cka_sr_jax.sparsity.masks import Masks, Params, fold_in_path

Update = Callable[[Array, Int[Array, ""], Masks, Params, Params], Masks]
Distributed = str | Mapping[str, float] | Distribution


def _keep(key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params) -> Masks:
    return masks


class Rule(NamedTuple):
    """A sparse-training rule.

    Attributes:
      init: `(key, params) -> masks`, the masks of step 0.
      update: `(key, step, masks, params, grads) -> masks`, run where `due`; `grads` are dense, so
        they also say where a pruned weight would help.
      due: `(step) -> bool`, traced or a plain `False` for masks that never change.
      gradient_decay: above 0, `update` gets an exponential average of the dense gradients with
        this decay, in float32, instead of the step's own; `sparsify` keeps it.
    """

    init: Callable[[Array, Params], Masks]
    update: Update = _keep
    due: Callable[[Int[Array, ""]], Bool[Array, ""] | bool] = lambda step: False
    gradient_decay: float = 0.0


def map_layers(
    function: Callable[[str, Array, Array, Array, Array], Array],
    key: Array,
    masks: Masks,
    params: Params,
    grads: Params,
) -> dict[str, Array]:
    """{path: function(path, key, mask, param, grad)} over the masked layers, each with its key."""
    values, slopes = dict(leaf_paths(params)), dict(leaf_paths(grads))
    results: dict[str, Array] = {}
    zero = jnp.zeros(())
    for path, mask in leaf_paths(masks):
        # One layer after another, for each begins with a 0 from the last one's result: all at once
        # their scores and searches would be in memory together.
        param, grad = (leaf + zero.astype(leaf.dtype) for leaf in (values[path], slopes[path]))
        results[path] = function(path, fold_in_path(key, path), mask, param, grad)
        zero = jnp.where(results[path].ravel()[0] > 0, 0.0, -0.0)  # also of a NaN or infinity
    return results
