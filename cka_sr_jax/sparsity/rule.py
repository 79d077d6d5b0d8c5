"""`Rule`: what a sparse-training rule is, and how to write one."""

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
    """A sparse-training rule: how the masks start, and when and how they change.

    `sparsify` calls these functions. They are pure and work under `jax.jit`, with every argument
    but `params` at `init` traced; equal keys give equal masks on every device.

    A rule of your own, in full. It starts from random masks. Every 100 steps, up to step 7500, each
    layer drops a tenth of its weights by |w| and grows as many by |dL/dw|, but none of those that
    it has just dropped:

    >>> import jax, optax
    >>> from cka_sr_jax.sparsity import (
    ...     Rule, map_layers, masks_from_paths, rst, sparsify, top_k_mask
    ... )
    >>> def elsewhere(density, end_step, update_every=100, moved=0.1):
    ...     def update(key, step, masks, params, grads):
    ...         def layer(path, key, mask, param, grad):
    ...             count = jnp.sum(mask)
    ...             grown = jnp.floor(moved * count).astype(jnp.int32)
    ...             kept = top_k_mask(jnp.abs(param), count - grown, where=mask)
    ...             return kept | top_k_mask(jnp.abs(grad), grown, where=~mask)
    ...         return masks_from_paths(params, map_layers(layer, key, masks, params, grads))
    ...     def due(step):
    ...         return (step > 0) & (step % update_every == 0) & (step <= end_step)
    ...     return Rule(init=rst(density).init, update=update, due=due)
    >>> rule = elsewhere(density=0.2, end_step=7500)
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), rule)
    >>> params = {"kernel": jnp.ones((10, 20)), "bias": jnp.zeros(20)}
    >>> grads = {"kernel": jnp.ones((10, 20)), "bias": jnp.zeros(20)}
    >>> before = tx.init(params).masks
    >>> after = rule.update(jax.random.key(0), jnp.int32(100), before, params, grads)
    >>> int(after["kernel"].sum()), int((after["kernel"] & before["kernel"]).sum())
    (40, 36)

    For another choice of what to drop and grow a score is enough: see `sparsity.scores`.

    Attributes:
      init: `(key, params) -> masks` of step 0: a pytree like `params` with a bool array of the
        parameter's shape at each leaf to prune and `optax.MaskedNode()` at the others. The
        structure and the shapes stay the same for good.
      update: `(key, step, masks, params, grads) -> masks`, called at the steps that are `due`, with
        the step counted from 0. `params` and `grads` are those that `tx.update` got: pruned
        parameters are 0 and gradients dense, so `grads` tell where a pruned weight would help.
      due: `(step) -> bool`, whether the masks change at the end of this step. The plain value False
        says that they never do, and `update` is then not compiled.
      gradient_decay: above 0, `update` gets as `grads` an exponential average of the dense
        gradients with this decay, in float32, at the masked leaves. `sparsify` keeps it.
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
    """{path: function(path, key, mask, param, grad)} over the masked layers.

    Each layer gets a key of its own, which depends on `key` and its path. `masks_from_paths` makes
    a tree of masks from the result. `Rule` has an example.
    """
    values, slopes = dict(leaf_paths(params)), dict(leaf_paths(grads))
    results: dict[str, Array] = {}
    zero = jnp.zeros(())
    for path, mask in leaf_paths(masks):
        # Each layer begins with a 0 from the last one's result, so that XLA takes them one after
        # another: at once, their scores and searches would be in memory together.
        param, grad = (leaf + zero.astype(leaf.dtype) for leaf in (values[path], slopes[path]))
        results[path] = function(path, fold_in_path(key, path), mask, param, grad)
        first = results[path].ravel()[0].astype(bool)  # also of a NaN or infinity
        zero = jnp.where(first, 0.0, -0.0)
    return results
