"""Functions of one layer over all of a tree: layers of a stack, and layers of equal shape."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from cka_sr_jax.sparsity.layers import Layer
from cka_sr_jax.sparsity.selection import count_kept, wide_counts


def layer_names(layers: Mapping[str, Layer]) -> dict[str, tuple[int, ...]]:
    """{name: dims} of every single layer; those of a stack are called path/0, path/1, ..."""
    return {name: layer.dims for path, layer in layers.items() for name in _names(path, layer)}


def by_path(layers: Mapping[str, Layer], values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{path: array of the stack's shape} from {name: value}, with the names of `layer_names`."""
    return {
        path: np.array([values[name] for name in _names(path, layer)]).reshape(
            layer.shape[: layer.stack]
        )
        for path, layer in layers.items()
    }


def _names(path: str, layer: Layer) -> list[str]:
    indices = itertools.product(*map(range, layer.shape[: layer.stack]))
    return ["/".join((path, *map(str, index))) for index in indices]


def over_stack(function: Callable[..., Any], stack: int) -> Callable[..., Any]:
    """The function of one layer as one of a stack, mapped over so many leading axes.

    >>> over_stack(jnp.sum, 1)(jnp.ones((3, 2, 2))).tolist()
    [4.0, 4.0, 4.0]
    """
    for _ in range(stack):
        function = jax.vmap(function)
    return function


def count_layers(layer: Layer, mask: Bool[Array, "..."]) -> Int[Array, "..."]:
    """How many weights a mask keeps of each layer, an array of the stack's shape."""
    with wide_counts(layer.size):
        return over_stack(count_kept, layer.stack)(mask)


def map_one_by_one(
    function: Callable[..., Any], layers: Mapping[str, Layer], *columns: Mapping[str, Any]
) -> dict[str, Any]:
    """{path: function(layer, *[column[path] for each column])}, layer after layer.

    The function sees single layers: it is mapped over the axes of a stack. Layers of equal shape
    and of one role (paths that differ in numbers alone) share one compiled loop, and no two groups
    are in memory together.
    """
    total = sum(layer.number * layer.size for layer in layers.values())
    results: dict[str, Any] = {}
    zero = jnp.zeros((), jnp.float32)
    for paths in _groups(layers, columns, total // 8):
        layer = layers[paths[0]]
        # Each group begins with a 0 from the last one's result, so that XLA takes them one after
        # another: at once, their scores and searches would be in memory together.
        rows = [[_plus(column[path], zero) for column in columns] for path in paths]
        of_layer = partial(function, layer)
        with wide_counts(layer.size):
            if len(paths) == 1:
                found = [over_stack(of_layer, layer.stack)(*rows[0])]
            else:
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
                together = jax.lax.map(lambda row: of_layer(*row), stacked)  # noqa: B023
                found = [jax.tree.map(lambda x, i=i: x[i], together) for i in range(len(paths))]
        results.update(zip(paths, found, strict=True))
        # A reduction stays where a sharded array lies; an element of it would be gathered.
        some = jnp.any(jax.tree.leaves(found[-1])[0].astype(bool))  # also of a NaN or infinity
        zero = jnp.where(some, jnp.float32(0.0), jnp.float32(-0.0))
    return results


def _groups(
    layers: Mapping[str, Layer], columns: Sequence[Mapping[str, Any]], most: int
) -> list[list[str]]:
    """Paths that share a loop, at most `most` weights together: stacking copies them."""
    groups: dict[Any, list[list[str]]] = {}
    for path, layer in layers.items():
        role = re.sub(r"\d+", "#", path)
        kinds = tuple(jax.typeof(column[path]) for column in columns)
        # A stack is a loop already.
        same = groups.setdefault((path if layer.stack else role, layer, kinds), [[]])
        if same[-1] and (len(same[-1]) + 1) * layer.size > most:
            same.append([])
        same[-1].append(path)
    return [paths for same in groups.values() for paths in same]


def _plus(leaf: Any, zero: Array) -> Array:  # of NumPy or JAX
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    return leaf + zero.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
