"""Parameters, density and FLOPs of each layer, as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.table import Table

from cka_sr_jax._paths import leaf_paths, natural_key


class LayerRow(NamedTuple):
    """One parameter array. FLOPs are of one example's forward pass, 2 per multiply-add."""

    path: str
    shape: tuple[int, ...]
    parameters: int
    kept: int
    density: float  # kept / parameters
    flops_dense: int
    flops: int  # of the kept weights alone


def layer_rows(params: Any, masks: Any, positions: Mapping[str, int]) -> list[LayerRow]:
    """One row per parameter array, in natural order of the paths (block2 before block10).

    flops_dense = 2 * size * positions and flops = 2 * kept * positions. What is kept is counted on
    the masks: a kept weight may be 0. Arrays without positions (biases, BatchNorm) count 0 FLOPs.

    Args:
      params: pytree of arrays.
      masks: the same tree with a bool array, or `optax.MaskedNode()` where the array stays dense.
      positions: path -> number of output positions per example, from `kernel_positions`.

    Raises:
      ValueError: the trees differ, a mask has another shape than its array, or `positions` names
        a path that `params` lacks.
    """
    leaves = dict(leaf_paths(params))
    missing = sorted(set(positions) - set(leaves))
    if missing:
        raise ValueError(f"positions name {missing[0]!r}, which is no parameter.")
    kept = dict(leaf_paths(jax.tree.map(_count_kept, params, masks)))
    rows = [
        _row(path, np.shape(leaf), kept[path], positions.get(path, 0))
        for path, leaf in leaves.items()
    ]
    return sorted(rows, key=lambda row: natural_key(row.path))


def total_row(rows: Sequence[LayerRow]) -> LayerRow:
    """The sums of all rows, with path "total" and shape (); its density counts every parameter."""
    return _sum_row("total", rows)


def fold_vectors(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The rows of rank 2 or more, then one row for all others (biases, normalization)."""
    vectors = [row for row in rows if len(row.shape) < 2]
    kernels = [row for row in rows if len(row.shape) >= 2]
    return kernels + ([_sum_row(f"vectors ({len(vectors)})", vectors)] if vectors else [])


def console_table(rows: Sequence[LayerRow]) -> Table:
    """The rows as a table for the terminal; biases and normalization share a line."""
    table = Table(show_footer=True)
    table.add_column("layer", overflow="fold")  # a cut path names no layer
    table.add_column("shape")
    for name in ("parameters", "kept", "density", "FLOPs dense", "FLOPs sparse"):
        table.add_column(name, justify="right")
    for row in fold_vectors(rows):
        table.add_row(*row_text(row))
    for column, text in zip(table.columns, row_text(total_row(rows)), strict=True):
        column.footer = text
    return table


def row_text(row: LayerRow) -> tuple[str, ...]:
    """The row's fields as text: shape "3x3x16x32", counts with thousands separators."""
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
        raise ValueError(f"a mask has shape {np.shape(mask)}, its array {np.shape(leaf)}.")
    return int(np.count_nonzero(mask))


def _row(path: str, shape: tuple[int, ...], kept: int, positions: int) -> LayerRow:
    size = math.prod(shape)
    flops_dense, flops = 2 * size * positions, 2 * kept * positions
    return LayerRow(path, shape, size, kept, _ratio(kept, size), flops_dense, flops)


def _sum_row(path: str, rows: Sequence[LayerRow]) -> LayerRow:
    size, kept = sum(row.parameters for row in rows), sum(row.kept for row in rows)
    flops_dense, flops = sum(row.flops_dense for row in rows), sum(row.flops for row in rows)
    return LayerRow(path, (), size, kept, _ratio(kept, size), flops_dense, flops)


def _ratio(kept: int, size: int) -> float:
    return kept / size if size else 1.0
