"""The update of the rules that replace weights: each layer drops some and grows others."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cka_sr_jax.sparsity.distributions import layer_counts
from cka_sr_jax.sparsity.masks import Masks, Params, mask_shapes, masks_from_paths
from cka_sr_jax.sparsity.rule import Distributed, Update, map_layers
from cka_sr_jax.sparsity.schedules import Schedule
from cka_sr_jax.sparsity.scores import Score
from cka_sr_jax.sparsity.selection import top_k_mask


def replace_share(share: Schedule, drop: Score, grow: Score) -> Update:
    """A rule's `update` that replaces floor(share(step) n) of the n weights of each layer."""
    replace = drop_and_grow(drop, grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        fraction = jnp.asarray(share(step), jnp.float32)

        def layer(path: str, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            count = jnp.sum(mask, dtype=jnp.int32)
            moved = jnp.floor(fraction * count.astype(jnp.float32)).astype(jnp.int32)
            moved = jnp.clip(moved, 0, count)  # a schedule of the user's may leave [0, 1]
            return replace(key, mask, param, grad, count - moved, moved)

        return masks_from_paths(params, map_layers(layer, key, masks, params, grads))

    return update


def grow_first(
    share: Schedule,
    drop: Score,
    grow: Score,
    end_step: int,
    density: float,
    distribution: Distributed,
) -> Update:
    """A rule's `update` that drops to each layer's n weights, then grows floor(share(step) n) more.

    n is the layer's count in the distribution of this density. At `end_step` it only drops.
    """
    replace = drop_and_grow(drop, grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        targets = layer_counts(mask_shapes(masks), density, distribution)
        fraction = jnp.where(step >= end_step, 0, share(step))

        def layer(path: str, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            extra = jnp.maximum(jnp.floor(fraction * targets[path]).astype(jnp.int32), 0)
            return replace(key, mask, param, grad, targets[path], extra)

        return masks_from_paths(params, map_layers(layer, key, masks, params, grads))

    return update


def drop_and_grow(drop: Score, grow: Score) -> Callable[..., Bool[Array, "..."]]:
    """`(key, mask, param, grad, keep, add) -> mask` of one layer, for these two scores.

    It keeps the `keep` weights of the mask with the highest drop score, then adds the `add` weights
    outside them with the highest grow score. A weight just dropped may grow again at once, as in
    the reference codes.
    """

    def replace(
        key: Array,
        mask: Bool[Array, "..."],
        param: Array,
        grad: Array,
        keep: int | Int[Array, ""],
        add: Int[Array, ""],
    ) -> Bool[Array, "..."]:
        drop_key, grow_key = jax.random.split(key)
        kept = top_k_mask(drop(drop_key, mask, param, grad), keep, where=mask)
        return kept | top_k_mask(grow(grow_key, kept, param, grad), add, where=~kept)

    return replace
