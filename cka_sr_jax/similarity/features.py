"""From what a Flax model recorded to the groups of features that `cka_penalty` takes.

A Linen model that sows into one name per stage needs nothing from here: its collection goes
straight into `cka_penalty`. For all other models, `stage_features` flattens what was recorded and
finds the stages by the features' shapes.

The order of the features matters for the groups by shape, for the axes of a heat map and for
explicit `pairs`; a penalty over all pairs of each group does not depend on it.

- Linen, read in the function that called `apply` (so also in a loss under `jit` and `grad`): the
  order of execution, with all calls of one module together, at its first call.
- Linen, after the collection has left a transformation (returned from `jit`, the aux of
  `value_and_grad`, or recorded inside `nn.remat` or `nn.jit`): natural order, Block_2 before
  Block_10, and a module's own output after those of its submodules. JAX has sorted the names by
  then. Natural order is the order of execution only where the names count in it, as the automatic
  names of one class do.
- NNX: always natural order, as a State is always sorted; items of a list come by index.

Several arrays under one name keep the order in which they were recorded. What `nn.scan` stacked has
the layer as its first axis, where a feature has the sample: `stacked` splits it.
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
    recorded: Mapping[Any, Any],
    include: str | Iterable[str] | None = None,
    *,
    stacked: Mapping[str, int] | None = None,
) -> dict[str, tuple[jax.Array, ...]]:
    """The recorded features as groups in order: {"stage1": (x0, x1, ...), "stage2": ...}.

    Where all features were sown from the top-level module, their names are the groups, in natural
    order. Otherwise each run of consecutive features of equal shape is a group, named "stage1",
    "stage2", ...; `cka_penalty` finds no pair in a group of one. The order is described at the top
    of this module. Pure, for use inside or outside `jit` and `grad`.

      >>> import flax.linen as nn
      >>> x = np.ones((8, 3))
      >>> model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(4), nn.Dense(2)])
      >>> variables = model.init(jax.random.key(0), x)
      >>> _, state = model.apply(
      ...     variables, x, capture_intermediates=True, mutable=["intermediates"]
      ... )
      >>> features = stage_features(state["intermediates"], include="layers_*/__call__")
      >>> {stage: [x.shape for x in group] for stage, group in features.items()}
      {'stage1': [(8, 4), (8, 4)], 'stage2': [(8, 2)]}

    Args:
      recorded: one collection, such as `mutables["features"]` or `mutables["intermediates"]` of
        Linen's `apply(..., mutable=["features"])` and `apply(..., capture_intermediates=...)`, or
        the State that `nnx.capture(model, nnx.Intermediate, ...)` returns.
      include: patterns of the features to take, all by default. A feature's path is its names
        joined by "/", such as "Block_3/__call__" or "blocks/3/__call__" for a module's output.
        A pattern is a shell glob of consecutive parts of the path: "Block_*/__call__" takes the
        outputs of the blocks, "Block_1" these and the outputs inside Block_1, and "/__call__" the
        model's own output.

      stacked: {pattern: number of leading axes that count layers}, for features that were sown
        inside `nn.scan` or `nn.vmap`. A feature [l, n, ...] becomes l features [n, ...] in order.

    Returns:
      Name of each group -> its features, arrays [n, ...] of the same n.

    Raises:
      ValueError: nothing recorded; a pattern that matches nothing; a feature that is not an array,
        lacks the axes that `stacked` says, or doesn't share the leading sample axis.
    """
    stages = named_stages(recorded, include, stacked=stacked)
    return {stage: tuple(x for _, x in group) for stage, group in stages.items()}


def named_stages(
    recorded: Mapping[Any, Any],
    include: str | Iterable[str] | None = None,
    *,
    stacked: Mapping[str, int] | None = None,
) -> dict[str, list[tuple[str, jax.Array]]]:
    """`stage_features` with the path of each feature: {"stage1": [("Block_0/__call__", x0), ...]}.

    Features of one name share their path.
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
    features = _split(features, stacked or {})
    _check(features)
    if all(len(path) == 1 for path, _ in features):
        names = sorted({path[0] for path, _ in features}, key=natural_key)
        return {name: [(name, x) for path, x in features if path == (name,)] for name in names}
    named = [("/".join(path), x) for path, x in features]
    runs = itertools.groupby(named, key=lambda feature: feature[1].shape)
    return {f"stage{i}": list(run) for i, (_, run) in enumerate(runs, start=1)}


def _flatten(tree: Mapping[Any, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each recorded leaf with its path; the leaves of one tuple or Variable share theirs."""
    for key in _ordered(tree):
        path = (*prefix, str(key))
        if isinstance(tree[key], Mapping):
            yield from _flatten(tree[key], path)
        else:
            yield from ((path, leaf) for leaf in jax.tree.leaves(tree[key]))


def _ordered(keys: Iterable[Any]) -> list[Any]:
    """The keys as they are where unsorted (order of execution), else in natural order.

    Sorted keys may have been sorted by JAX, so their order says nothing.
    """
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


def _split(features: list[tuple[Path, Any]], stacked: Mapping[str, int]) -> list[tuple[Path, Any]]:
    """The features with those of a stack one by one, under their common name."""
    for pattern, axes in stacked.items():
        found = [(path, x) for path, x in features if matches(pattern, "/".join(path))]
        if not found:
            paths = ", ".join(dict.fromkeys("/".join(path) for path, _ in features))
            raise ValueError(
                f"stacked pattern {pattern!r} matches none of the features taken: {paths}."
            )
        for path, x in found:
            if not isinstance(axes, int) or not 1 <= axes < np.ndim(x):
                raise ValueError(
                    f"stacked={{{pattern!r}: {axes!r}}} does not fit feature {'/'.join(path)!r} of "
                    f"shape {np.shape(x)}: give the number of axes before the sample's."
                )
    split = []
    for path, x in features:
        counts = [axes for pattern, axes in stacked.items() if matches(pattern, "/".join(path))]
        layers = x.reshape(-1, *x.shape[counts[0] :]) if counts else [x]
        split += [(path, layer) for layer in layers]
    return split


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
