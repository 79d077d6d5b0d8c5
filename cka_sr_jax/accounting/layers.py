"""Parameters, density and FLOPs of each parameter array of a model, as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cka_sr_jax._paths import leaf_paths, natural_key
from cka_sr_jax.sparsity.layers import Axes, describe


class LayerRow(NamedTuple):
    """What one parameter array has and costs.

    FLOPs are those of one example's forward pass, 2 per multiply-add.

    Attributes:
      path: names that lead to the array, joined by "/".
      shape: of the array.
      parameters: number of entries.
      kept: number of entries that the mask keeps.
      density: kept / parameters.
      flops_dense: with all entries.
      flops: with the kept entries alone.
      pruned_as: what the masks take it for, such as "matrix 300 x 100"; empty: it stays dense.
    """

    path: str
    shape: tuple[int, ...]
    parameters: int
    kept: int
    density: float
    flops_dense: int
    flops: int
    pruned_as: str = ""

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias, a norm's scale or the like.

        Attention's biases and those of a stack of layers have several axes: their name tells.
        """
        named = self.path.rpartition("/")[2] in ("bias", "scale")
        return not self.pruned_as and (named or len(self.shape) < 2)


def layer_rows(
    params: Any,
    masks: Any,
    positions: Mapping[str, int],
    *,
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> list[LayerRow]:
    """One row per parameter array, in the order in which the model applies its kernels.

    That is the order of `positions` as `kernel_positions` gives them. An array that has none comes
    with the first kernel of its module. Among equals, and without positions, paths are in natural
    order (block2 before block10).

      flops_dense = 2 * size * positions,   flops = 2 * kept * positions.

    Kept weights are counted on the masks, as a kept weight may be 0. Arrays without positions
    (biases, BatchNorm) count 0 FLOPs. `summary` is a table without FLOPs, and needs no positions.

      >>> params = {"dense": {"kernel": np.ones((4, 3))}}
      >>> masks = {"dense": {"kernel": np.arange(12).reshape(4, 3) < 6}}
      >>> (row,) = layer_rows(params, masks, {"dense/kernel": 1})
      >>> row.parameters, row.kept, row.density, row.flops_dense, row.flops
      (12, 6, 0.5, 24, 12)

    Args:
      params: pytree of arrays.
      masks: the same tree with a bool array, or `optax.MaskedNode()` where the array stays dense.
      positions: path -> number of output positions per example, from `kernel_positions`.
      stacked: as for the rule that made the masks (see `sparsity.layers_of`).
      input_axes: likewise.

    Raises:
      ValueError: the trees differ, a mask has another shape than its array, or `positions` names
        a path that `params` lacks.
    """
    leaves = dict(leaf_paths(params))
    missing = sorted(set(positions) - set(leaves))
    if missing:
        raise ValueError(
            f"positions name {missing[0]!r}, and the parameters have no such path: pass "
            "kernel_positions of the same model."
        )
    kept = dict(leaf_paths(jax.tree.map(_count_kept, params, masks)))
    pruned = [path for path, _ in leaf_paths(masks)]
    layers = describe(params, pruned, stacked=stacked, input_axes=input_axes)
    rows = [
        _row(path, np.shape(leaf), kept[path], positions.get(path, 0), str(layers.get(path, "")))
        for path, leaf in leaves.items()
    ]
    places = _places(positions)
    return sorted(rows, key=lambda row: (_place(row.path, places), natural_key(row.path)))


def _places(positions: Mapping[str, int]) -> dict[str, int]:
    """{path of a kernel or of a module around it: the place of its first kernel}."""
    places: dict[str, int] = {}
    for place, path in enumerate(positions):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            places.setdefault("/".join(parts[:depth]), place)
    return places


def _place(path: str, places: Mapping[str, int]) -> int:
    """The place of the innermost module around an array that has one; 0, the start, without any."""
    while path not in places and "/" in path:
        path = path.rpartition("/")[0]
    return places.get(path, 0)


def total_row(rows: Sequence[LayerRow]) -> LayerRow:
    """The sums of all rows, with path "total" and shape ().

    Its density is that of all parameters together, dense arrays included.
    """
    return _sum_row("total", rows)


def fold_vectors(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The rows of kernels, embeddings and so on, then one row for all that are vectors."""
    vectors = [row for row in rows if row.is_vector]
    kernels = [row for row in rows if not row.is_vector]
    return kernels + ([_sum_row(f"vectors ({len(vectors)})", vectors)] if vectors else [])


def row_text(row: LayerRow) -> tuple[str, ...]:
    """The row's fields as text: shape "3x3x16x32", counts with separators, density to 4 digits."""
    return (
        row.path,
        "x".join(map(str, row.shape)),
        f"{row.parameters:,}",
        f"{row.kept:,}",
        f"{row.density:.4f}",
        f"{row.flops_dense:,}",
        f"{row.flops:,}",
    )


def _count_kept(leaf: Any, mask: Any) -> int:
    if isinstance(mask, optax.MaskedNode):
        return int(np.size(leaf))
    if np.shape(mask) != np.shape(leaf):
        raise ValueError(
            f"a mask has shape {np.shape(mask)} and its array {np.shape(leaf)}: pass masks of the "
            "same parameters."
        )
    return int(np.count_nonzero(mask))


def _row(path: str, shape: tuple[int, ...], kept: int, positions: int, pruned_as: str) -> LayerRow:
    size = math.prod(shape)
    flops_dense, flops = 2 * size * positions, 2 * kept * positions
    return LayerRow(path, shape, size, kept, _ratio(kept, size), flops_dense, flops, pruned_as)


def _sum_row(path: str, rows: Sequence[LayerRow]) -> LayerRow:
    size, kept = sum(row.parameters for row in rows), sum(row.kept for row in rows)
    flops_dense, flops = sum(row.flops_dense for row in rows), sum(row.flops for row in rows)
    return LayerRow(path, (), size, kept, _ratio(kept, size), flops_dense, flops)


def _ratio(kept: int, size: int) -> float:
    return kept / size if size else 1.0
