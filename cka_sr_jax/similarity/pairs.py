"""Which pairs of features a penalty counts, how much each, and the sum over them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cka_sr_jax.similarity.grams import feature_groups

Pairs = Literal["group", "neighbors", "all"] | Iterable[tuple[int, int]]
Reduction = Literal["sum", "mean"]


def pair_weights(features: Any, pairs: Any, decay: float = 1.0) -> Float[np.ndarray, "l l"]:
    """Symmetric matrix: decay^(|i - j| - 1) at each pair (i, j) of features to penalize, else 0.

    Args:
      features: pytree of l arrays, in groups as `cka_penalty` takes them.
      pairs, decay: as in `cka_penalty`.

    Raises:
      ValueError: no pair; an unknown option; an index that names no feature; a decay outside
        (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(
            f"decay={decay} is not in (0, 1]: use 1 to weigh all pairs alike, or "
            "pairs='neighbors' for those of neighbors alone."
        )
    groups = feature_groups(features)
    count = sum(map(len, groups))
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    if isinstance(pairs, str):
        group = np.repeat(np.arange(len(groups)), [len(leaves) for leaves in groups])
        same = group[:, None] == group[None, :]
        if pairs == "group":
            weights = same
        elif pairs == "neighbors":
            weights = same & (distance == 1)
        elif pairs == "all":
            weights = np.ones((count, count), bool)
        else:
            raise ValueError(
                f"pairs={pairs!r} is unknown: use 'group', 'neighbors', 'all' or a sequence of "
                "index pairs."
            )
        weights = weights & ~np.eye(count, dtype=bool)
    else:
        weights = np.zeros((count, count), bool)
        for i, j in pairs:
            if not (0 <= i < count and 0 <= j < count and i != j):
                raise ValueError(
                    f"pair ({i}, {j}) does not name two different features: "
                    f"indices run from 0 to {count - 1}."
                )
            weights[i, j] = weights[j, i] = True
    weights = (weights * float(decay) ** np.maximum(distance - 1, 0)).astype(np.float32)
    if not weights.any():
        raise ValueError(
            f"no pair of features to penalize among {count} feature(s): pass at least two features "
            "in one group, for example {'stage1': (x0, x1)} (stage_features makes such groups of "
            "what blocks sow inside), or pairs='all'."
        )
    return weights


def sum_over_pairs(
    matrix: Float[Array, "l l"], weights: Float[np.ndarray, "l l"], reduction: str
) -> Float[Array, ""]:
    """The weighted sum of the matrix's entries, or their weighted mean.

    Raises:
      ValueError: an unknown reduction.
    """
    total = jnp.sum(matrix * weights.astype(matrix.dtype))
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / float(weights.sum())
    raise ValueError(f"reduction={reduction!r} is unknown: use 'sum' or 'mean'.")
