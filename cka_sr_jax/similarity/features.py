"""From what a Flax model recorded to the groups of features that `cka_penalty` takes.

A Linen model that sows into one name per stage needs nothing from here: its collection goes
straight into `cka_penalty`. For all other models, `stage_features` flattens what was recorded and
finds the stages by the features' shapes.

The order of the features. A penalty over all pairs of each group doesn't depend on it; the groups
by shape, the axes of a heat map and explicit `pairs` do.

- Linen, read in the function that called `apply` (so also in a loss under `jit` and `grad`): the
  order of execution, except that all calls of one module come together, at its first.
- Linen, after the collection has left a transformation (returned from `jit`, the aux of
  `value_and_grad`, or recorded inside `nn.remat` or `nn.jit`): JAX has sorted the names and the
  order of execution is lost. They come in natural order, Block_2 before Block_10, and a module's
  own output after those of its submodules. That is the order of execution only where the names,
  as automatic ones of one class do, count in it.
- NNX: a State is always sorted, so always natural order; items of a list come by index.

Several arrays under one name keep the order they were recorded in, always. What `nn.scan` stacked
has the layer as its first axis, not the sample: split it before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cka_sr_jax._paths import matches, natural_key

Path = tuple[str, ...]


def stage_features(
    recorded: Mapping[Any, Any], include: str | Iterable[str] | None = None
) -> dict[str, tuple[jax.Array, ...]]:
    """The recorded features as groups in order: {"stage1": (x0, x1, ...), "stage2": ...}.

    Where all features were sown from the top-level module, their names are the groups, in natural
    order. Otherwise consecutive features of equal shape are a group, named "stage1", "stage2", ...;
    a group of one is kept, and `cka_penalty` finds no pair in it. The module's docstring says in
    which order they come. Pure, for use inside or outside `jit` and `grad`.

    Args:
      recorded: one collection, such as `mutables["features"]` or `mutables["intermediates"]` of
        Linen's `apply(..., mutable=["features"])` and `apply(..., capture_intermediates=...)`, or
        the State that `nnx.capture(model, nnx.Intermediate, ...)` returns.
      include: patterns of the features to take, all by default. A feature's path is its names
        joined by "/", such as "Block_3/__call__" or "blocks/3/__call__" for a module's output.
        A pattern is a shell glob of consecutive parts of it (`cka_sr_jax._paths`):
        "Block_*/__call__" takes the blocks and not what is in them, "Block_1" both, and
        "/__call__" the model's own output alone.

    Returns:
      Arrays [n, ...] of one n.

    Raises:
      ValueError: nothing recorded; a pattern that matches nothing; a feature that is not an array
        or doesn't share the leading sample axis.
    """
    if not isinstance(recorded, Mapping):
        raise ValueError(
            f"a {type(recorded).__name__} is not a collection of recorded features: pass "
            "mutables['features'], mutables['intermediates'] or the State of nnx.capture."
        )
    features = _select(list(_flatten(recorded)), include)
    if not features:
        raise ValueError(
            "no features were recorded: sow some or pass capture_intermediates, and name their "
            "collection in mutable=[...] (Linen), or use nnx.capture(model, nnx.Intermediate)."
        )
    _check(features)
    if all(len(path) == 1 for path, _ in features):
        names = sorted({path[0] for path, _ in features}, key=natural_key)
        return {name: tuple(x for path, x in features if path == (name,)) for name in names}
    runs = itertools.groupby((x for _, x in features), key=lambda x: x.shape)
    return {f"stage{i}": tuple(run) for i, (_, run) in enumerate(runs, start=1)}


def _flatten(tree: Mapping[Any, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each recorded leaf with its path; the leaves of one tuple or Variable share theirs."""
    for key in _ordered(tree):
        path = (*prefix, str(key))
        if isinstance(tree[key], Mapping):
            yield from _flatten(tree[key], path)
        else:
            yield from ((path, leaf) for leaf in jax.tree.leaves(tree[key]))


def _ordered(keys: Iterable[Any]) -> list[Any]:
    """Keys that are not sorted are in the order of execution; sorted ones may have been by JAX."""
    keys = list(keys)
    names = [str(key) for key in keys]
    if names != sorted(names):
        return keys
    return sorted(keys, key=lambda key: (key == "__call__", natural_key(str(key))))


def _select(
    features: list[tuple[Path, Any]], include: str | Iterable[str] | None
) -> list[tuple[Path, Any]]:
    """The features whose path matches one of the patterns."""
    if include is None:
        return features
    patterns = [include] if isinstance(include, str) else list(include)
    for pattern in patterns:
        if not any(matches(pattern, "/".join(path)) for path, _ in features):
            paths = ", ".join(dict.fromkeys("/".join(path) for path, _ in features))
            raise ValueError(
                f"include pattern {pattern!r} matches none of the recorded features: "
                f"{paths or 'there are none'}."
            )
    return [
        (path, x)
        for path, x in features
        if any(matches(pattern, "/".join(path)) for pattern in patterns)
    ]


def _check(features: list[tuple[Path, Any]]) -> None:
    first, x0 = features[0]
    for path, x in features:
        if not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(
                f"feature {'/'.join(path)!r} is a {type(x).__name__}, not an array: record arrays "
                "only, or leave it out with include=."
            )
        if x.ndim == 0:
            raise ValueError(
                f"feature {'/'.join(path)!r} is a scalar: record arrays whose first axis is the "
                "sample, or leave it out with include=."
            )
        if len(x) != len(x0):
            raise ValueError(
                f"feature {'/'.join(path)!r} of shape {x.shape} does not share the leading sample "
                f"axis of {'/'.join(first)!r} of shape {x0.shape}: leave one of them out with "
                "include=."
            )
