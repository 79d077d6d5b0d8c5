"""Random masks: exact counts at random places, drawn where the parameters lie."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Bool

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.layers import Axes, Layer, describe
from cka_sr_jax.sparsity.masks import Masks, Params, masks_from_paths
from cka_sr_jax.sparsity.per_layer import over_stack
from cka_sr_jax.sparsity.selection import count_dtype, largest_ranks, wide_counts


def random_masks(
    key: Array,
    params: Params,
    counts: Mapping[str, Any],
    *,
    stacked: Axes | None = None,
) -> Masks:
    """Masks with exactly `counts[path]` weights of each named layer, at random places.

    The places in a layer depend on the key and the layer's path, not on the other layers. For a
    parameter that `stacked` matches, the count is an array of the stack's shape.
    """
    layers = describe(params, list(counts), stacked=stacked)
    return random_places(key, params, layers, counts)


def random_places(
    key: Array, params: Params, layers: Mapping[str, Layer], counts: Mapping[str, Any]
) -> Masks:
    """`random_masks` of layers that are known."""
    leaves = dict(leaf_paths(params))
    masks = {
        path: drawn_like(
            leaves[path], random_mask, layer, layer_keys(key, path, layer), np.asarray(counts[path])
        )
        for path, layer in layers.items()
    }
    return masks_from_paths(params, masks)


def drawn_like(leaf: Any, draw: Callable[..., Array], layer: Layer, *args: Any) -> Array:
    """`draw(layer, *args)`, made where the parameter lies, by one program for all layers alike.

    Args:
      draw: a function of a module, since its programs are kept.
    """
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    # On one device a sharding would only tie the mask to it.
    sharding = leaf.sharding if concrete and len(leaf.sharding.device_set) > 1 else None
    with wide_counts(layer.size):  # here too, or the counts would be cut to 32 bits on their way in
        mask = _compiled(draw, layer, sharding)(*args)
    return mask if concrete else like(mask, leaf)


@lru_cache(maxsize=256)
def _compiled(draw: Callable[..., Array], layer: Layer, sharding: Any) -> Callable[..., Array]:
    place: Any = {} if sharding is None else {"out_shardings": sharding}
    return jax.jit(partial(draw, layer), **place)


def like(mask: Array, leaf: Any) -> Array:
    """The mask, where the parameter lies."""
    if isinstance(leaf, jax.core.Tracer):
        sharding = jax.typeof(leaf).sharding
        explicit = AxisType.Explicit in sharding.mesh.axis_types
        return jax.sharding.reshard(mask, sharding) if explicit else mask
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return jax.device_put(mask, leaf.sharding)
    return mask


def random_mask(layer: Layer, keys: Array, counts: Any) -> Bool[Array, "..."]:
    """A mask with exactly so many weights of each layer, at random places.

    Args:
      keys: of the stack's shape.
      counts: of the stack's shape.
    """
    shape = layer.shape[layer.stack :]

    def draw(key: Array, count: Array) -> Bool[Array, "..."]:
        return largest_ranks({"": jax.random.bits(key, shape, jnp.uint32)}, count)[""]

    with wide_counts(layer.size):
        counts = jnp.asarray(counts).astype(count_dtype(layer.size))
        return over_stack(draw, layer.stack)(keys, counts)


def layer_keys(key: Array, path: str, layer: Layer) -> Array:
    """The key of a layer, or the keys of a stack's layers: they depend on the path alone."""
    own = fold_in_path(key, path)
    return jax.random.split(own, layer.shape[: layer.stack]) if layer.stack else own


def fold_in_path(key: Array, path: str) -> Array:
    """The key of one leaf: it depends on `key` and the leaf's path, not on the other leaves."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
