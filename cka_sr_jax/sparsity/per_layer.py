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
from jax.sharding import NamedSharding, PartitionSpec
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
    mapped = function
    for _ in range(stack):
        mapped = jax.vmap(mapped)
    return (lambda *columns: mapped(*_alike(columns, stack))) if stack else function


def _alike(columns: Sequence[Any], stack: int) -> list[Any]:
    """The arrays with their stack's axes sharded alike, as `vmap` wants where axes are explicit."""
    shardings = [jax.typeof(column).sharding for column in columns]
    sharded = [sharding for sharding in shardings if any(sharding.spec[:stack])]
    if not sharded:
        return list(columns)
    mesh, spec = sharded[0].mesh, sharded[0].spec[:stack]
    return [
        jax.sharding.reshard(
            column, NamedSharding(mesh, PartitionSpec(*spec, *sharding.spec[stack:]))
        )
        for column, sharding in zip(columns, shardings, strict=True)
    ]


def count_layers(layer: Layer, mask: Bool[Array, "..."]) -> Int[Array, "..."]:
    """How many weights a mask keeps of each layer, an array of the stack's shape."""
    with wide_counts(layer.size):
        return over_stack(count_kept, layer.stack)(mask)


def map_one_by_one(
    function: Callable[..., Any], layers: Mapping[str, Layer], *columns: Mapping[str, Any]
) -> dict[str, Any]:
    """{path: function(layer, *[column[path] for each column])}, layer after layer.

    The function sees single layers. Layers of equal shape and of one role (paths that differ in
    numbers alone) share one compiled loop. Layers are handled one after another, but for those of a
    stack, which `vmap` takes together.

    Raises:
      ValueError: a stack that is sharded over its layers by explicit axes.
    """
    results: dict[str, Any] = {}
    zero = jnp.zeros((), jnp.float32)
    for paths in _groups(layers, columns):
        layer = layers[paths[0]]
        _check_loop(paths[0], layer, [column[paths[0]] for column in columns])
        rows = [tuple(column[path] for column in columns) for path in paths]
        of_layer = partial(function, layer)
        with wide_counts(layer.size):
            if len(paths) == 1:
                # It begins with a 0 from the last result, so that XLA takes one after another: at
                # once, their scores and searches would be in memory together.
                row = [_plus(value, zero) for value in rows[0]]
                found = [over_stack(of_layer, layer.stack)(*row)]
            else:
                found = _in_one_loop(of_layer, rows)
        results.update(zip(paths, found, strict=True))
        # A reduction stays where a sharded array lies; an element of it would be gathered.
        some = jnp.any(jax.tree.leaves(found[-1])[0].astype(bool))  # also of a NaN or infinity
        zero = jnp.where(some, jnp.float32(0.0), jnp.float32(-0.0))
    return results


def _check_loop(path: str, layer: Layer, columns: Sequence[Any]) -> None:
    """Raise ValueError for a stack that JAX maps no loop over."""
    specs = [jax.typeof(column).sharding.spec for column in columns]
    if any(any(spec[: layer.stack]) for spec in specs):
        raise ValueError(
            f"{path} is sharded over its stack of layers by a mesh with explicit axes, over which "
            "JAX maps no loop: shard another of its axes, or make the mesh with AxisType.Auto."
        )


def _groups(layers: Mapping[str, Layer], columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Paths that share a loop."""
    groups: dict[Any, list[str]] = {}
    for path, layer in layers.items():
        role = re.sub(r"\d+", "#", path)
        kinds = tuple(jax.typeof(column[path]) for column in columns)
        # A stack is one set of kernels already.
        groups.setdefault((path if layer.stack else role, layer, kinds), []).append(path)
    return list(groups.values())


def _in_one_loop(function: Callable[..., Any], rows: Sequence[Any]) -> list[Any]:
    """[function(*row) for each row], compiled once; no row is copied before its turn."""

    def at(i: Array) -> Any:
        branches = [lambda row=row: jax.tree.map(jnp.asarray, row) for row in rows]
        return function(*jax.lax.switch(i, branches))

    results = jax.lax.map(at, jnp.arange(len(rows), dtype=jnp.int32))
    return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(rows))]


def _plus(leaf: Any, zero: Array) -> Array:  # of NumPy or JAX
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    return leaf + zero.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
