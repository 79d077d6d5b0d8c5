"""The update of the rules that replace weights: each layer drops some and grows others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cka_sr_jax.sparsity.layers import Finder, Layer
from cka_sr_jax.sparsity.masks import Masks, Params, masks_from_paths
from cka_sr_jax.sparsity.rule import Change, Update, map_layers
from cka_sr_jax.sparsity.schedules import Schedule
from cka_sr_jax.sparsity.scores import Score
from cka_sr_jax.sparsity.selection import count_dtype, count_kept, top_k_mask

Counts = Callable[[Params], Mapping[str, Any]]  # params -> {path: weights of each layer}


class Replacement(NamedTuple):
    """How a rule replaces weights.

    Attributes:
      find: `(params) -> layers`.
      share: of a layer's weights that an update replaces, a schedule.
      drop: score of the weights in the mask.
      grow: score of those outside.
      restart: a weight that is dropped and grown in one update starts anew at 0; else it keeps its
        value and slots.
    """

    find: Finder
    share: Schedule
    drop: Score
    grow: Score
    restart: bool = False


def replace_share(how: Replacement, counts: Counts | None = None) -> Update:
    """A rule's `update` that replaces floor(share(step) n) of the n weights of each layer.

    Args:
      counts: n of each layer, also for masks that have other counts; None: what the masks have.
    """
    replace = drop_and_grow(how.drop, how.grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks | Change:
        fraction = jnp.asarray(how.share(step), jnp.float32)

        def at_layer(
            layer: Layer, key: Array, mask: Array, param: Array, grad: Array, *count: Array
        ) -> tuple[Array, Array]:
            n = count[0].astype(count_dtype(mask.size)) if count else count_kept(mask)
            moved = jnp.floor(fraction * n.astype(jnp.float32)).astype(n.dtype)
            moved = jnp.clip(moved, 0, n)  # a schedule of the user's may leave [0, 1]
            return replace(key, mask, param, grad, n - moved, n)

        values = () if counts is None else (counts(params),)
        found = map_layers(at_layer, key, how.find(params), masks, params, grads, *values)
        return changed(params, found, how.restart)

    return update


def grow_first(how: Replacement, end_step: int, counts: Counts) -> Update:
    """A rule's `update` that drops to each layer's n weights, then grows floor(share(step) n) more.

    At `end_step` it only drops.

    Args:
      counts: n of each layer.
    """
    replace = drop_and_grow(how.drop, how.grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks | Change:
        fraction = jnp.where(step >= end_step, 0, how.share(step)).astype(jnp.float32)

        def at_layer(
            layer: Layer, key: Array, mask: Array, param: Array, grad: Array, count: Array
        ) -> tuple[Array, Array]:
            n = count.astype(count_dtype(mask.size))
            extra = jnp.floor(fraction * n.astype(jnp.float32)).astype(n.dtype)
            return replace(key, mask, param, grad, n, n + jnp.maximum(extra, 0))

        found = map_layers(at_layer, key, how.find(params), masks, params, grads, counts(params))
        return changed(params, found, how.restart)

    return update


def changed(params: Params, found: Mapping[str, tuple[Array, Array]], restart: bool) -> Any:
    """The masks of an update from {path: (mask, kept)}, with what was kept if the rest restarts."""
    masks, kept = (
        masks_from_paths(params, {path: pair[i] for path, pair in found.items()}) for i in (0, 1)
    )
    return Change(masks, kept) if restart else masks


def drop_and_grow(drop: Score, grow: Score) -> Callable[..., tuple[Array, Array]]:
    """`(key, mask, param, grad, keep, total) -> (mask, kept)` of one layer, for these two scores.

    It keeps the `keep` weights of the mask with the highest drop score, then adds those outside
    them with the highest grow score, up to `total` weights. A weight just dropped may grow again at
    once, as in the reference codes.
    """

    def replace(
        key: Array,
        mask: Bool[Array, "..."],
        param: Array,
        grad: Array,
        keep: int | Int[Array, ""],
        total: int | Int[Array, ""],
    ) -> tuple[Bool[Array, "..."], Bool[Array, "..."]]:
        drop_key, grow_key = jax.random.split(key)
        kept = top_k_mask(drop(drop_key, mask, param, grad), keep, where=mask)
        add = total - count_kept(kept)
        return kept | top_k_mask(grow(grow_key, kept, param, grad), add, where=~kept), kept

    return replace
