"""`Rule`: what a sparse-training rule is, and how to write one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import Distribution
from cka_sr_jax.sparsity.layers import Layer
from cka_sr_jax.sparsity.masks import Masks, Params
from cka_sr_jax.sparsity.per_layer import map_one_by_one
from cka_sr_jax.sparsity.random_places import layer_keys


class Change(NamedTuple):
    """What a rule's update may return in place of masks.

    Attributes:
      masks: the new ones.
      kept: masks of the weights that keep their value and their slots; the others of `masks` start
        anew at 0, also where they were kept before.
    """

    masks: Masks
    kept: Masks


Update = Callable[[Array, Int[Array, ""], Masks, Params, Params], "Masks | Change"]
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

    >>> import jax, jax.numpy as jnp, optax
    >>> from cka_sr_jax.sparsity import (
    ...     Rule, layers_of, map_layers, masks_from_paths, rst, sparsify, top_k_mask
    ... )
    >>> def elsewhere(density, end_step, update_every=100, moved=0.1):
    ...     def update(key, step, masks, params, grads):
    ...         def at_layer(layer, key, mask, param, grad):
    ...             count = jnp.sum(mask)
    ...             grown = jnp.floor(moved * count).astype(jnp.int32)
    ...             kept = top_k_mask(jnp.abs(param), count - grown, where=mask)
    ...             return kept | top_k_mask(jnp.abs(grad), grown, where=~mask)
    ...         layers = layers_of(params)
    ...         return masks_from_paths(
    ...             params, map_layers(at_layer, key, layers, masks, params, grads)
    ...         )
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
        parameters are 0 and gradients dense, so `grads` tell where a pruned weight would help. A
        `Change` in place of masks says which weights start anew.
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
    function: Callable[..., Any],
    key: Array,
    layers: Mapping[str, Layer],
    masks: Masks,
    params: Params,
    grads: Params,
    *values: Mapping[str, Any],
) -> dict[str, Any]:
    """{path: function(layer, key, mask, param, grad, *values)}, layer after layer.

    The function sees one layer at a time, also of those that are stacked in one array, and is
    compiled once for layers of equal shape. Each layer gets a key of its own, which depends on
    `key` and its path. `masks_from_paths` makes a tree of masks from the result. `Rule` has an
    example.

    Args:
      function: of one layer; what else it depends on comes in `values`.
      layers: from `layers_of`; those that the masks leave dense are passed over.
      values: {path: array of the stack's shape}, a number for each layer, such as its count.
    """
    check_prunes(layers, masks)
    masked = dict(leaf_paths(masks))
    layers = {path: layer for path, layer in layers.items() if path in masked}
    columns: list[Mapping[str, Any]] = [dict(leaf_paths(tree)) for tree in (params, grads)]
    keys = {path: layer_keys(key, path, layer) for path, layer in layers.items()}
    return map_one_by_one(function, layers, keys, masked, *columns, *values)


def check_prunes(layers: Mapping[str, Layer], masks: Masks) -> None:
    """Check that a rule with these layers may change these masks.

    Raises:
      ValueError: masks of a parameter that the rule keeps dense.
    """
    for path, _ in leaf_paths(masks):
        if path not in layers:
            raise ValueError(
                f"the masks prune {path}, which the rule keeps dense: name it in the rule's "
                "include, or leave it out of the masks."
            )
