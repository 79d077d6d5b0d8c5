"""What is pruned, as what, and at which density: a table for a terminal or a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cka_sr_jax._paths import leaf_paths, natural_key
from cka_sr_jax.sparsity import get_masks, layers_of
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, describe
from cka_sr_jax.sparsity.per_layer import count_layers

HEADER = ("parameter", "shape", "pruned as", "weights", "kept", "density")


class SummaryRow(NamedTuple):
    """What one parameter array is to a sparse-training rule.

    Attributes:
      path: names that lead to the array, joined by "/".
      shape: of the array.
      layer: as what it is pruned; None: it is not pruned.
      kept: weights that the masks keep of each layer of the array; None: no masks were given.
    """

    path: str
    shape: tuple[int, ...]
    layer: Layer | None
    kept: np.ndarray | None

    @property
    def size(self) -> int:
        """Entries of the array."""
        return int(np.prod(self.shape, dtype=np.int64))


class Summary(NamedTuple):
    """The rows of `summary`; `print` shows them as a text table and a notebook as HTML."""

    rows: tuple[SummaryRow, ...]

    def __str__(self) -> str:
        return text_table([HEADER, *self._cells()], left=3)

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row(cells, "td") for cells in self._cells())
        return f"<table><thead>{row(HEADER, 'th')}</thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[tuple[str, ...]]:
        shown = [row for row in self.rows if row.layer or len(row.shape) > 1]
        vectors = [row for row in self.rows if row not in shown]
        cells = [_cells_of(row) for row in shown]
        if vectors:
            size = f"{sum(row.size for row in vectors):,}"
            name = "1 vector" if len(vectors) == 1 else f"{len(vectors)} vectors"
            cells.append((name, "", "not pruned", size, size, "1"))
        pruned = [row for row in self.rows if row.layer]
        cells.append(_total("pruned together", pruned))
        cells.append(_total("all", self.rows))
        return cells


def text_table(lines: Sequence[Sequence[str]], left: int) -> str:
    """Lines of cells as columns, of which the first `left` are flush left and the others right.

    >>> print(text_table([("layer", "size"), ("a", "12")], left=1))
    layer  size
    a        12
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def summary(
    params: Any,
    opt_state: Any = None,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Summary:
    """A table of what a rule with these options prunes, as what, and at which density.

    >>> import jax.numpy as jnp, optax
    >>> from cka_sr_jax.accounting import summary
    >>> from cka_sr_jax.sparsity import rst, sparse_init, sparsify
    >>> params = {"mid": {"kernel": jnp.ones((20, 30)), "bias": jnp.ones(30)}}
    >>> tx = sparsify(optax.sgd(0.1), rst(density=0.1))
    >>> params, opt_state = sparse_init(tx, params)
    >>> print(summary(params, opt_state))
    parameter        shape  pruned as       weights  kept  density
    mid/kernel       20x30  matrix 20 x 30      600    60   0.1000
    1 vector                not pruned           30    30        1
    pruned together                             600    60   0.1000
    all                                         630    90   0.1429

    Before there is an optimizer state, and for arrays that are only shapes, it says what would be
    pruned. A stack of layers whose densities differ shows the lowest and the highest.

    Args:
      params: pytree of arrays, or of `jax.ShapeDtypeStruct`.
      opt_state: with masks of these parameters, which then say what is pruned.
      include: as for `layers_of`, and so are the next three.

    Raises:
      ValueError: as `layers_of`, and as `get_masks` for the state.
    """
    masks: Mapping[str, Any] = {}
    if opt_state is None:
        options: dict[str, Any] = {"include": include, "exclude": exclude}
        layers = layers_of(params, **options, stacked=stacked, input_axes=input_axes)
    else:
        masks = dict(leaf_paths(get_masks(opt_state)))
        _check(params, masks)
        layers = describe(params, list(masks), stacked=stacked, input_axes=input_axes)
    rows = []
    for path, leaf in leaf_paths(params):
        layer, mask = layers.get(path), masks.get(path)
        kept = None
        if layer is not None and not isinstance(mask, jax.ShapeDtypeStruct | None):
            kept = np.asarray(count_layers(layer, mask))  # counted where the mask lies
        rows.append(SummaryRow(path, np.shape(leaf), layer, kept))
    return Summary(tuple(sorted(rows, key=lambda row: natural_key(row.path))))


def _check(params: Any, masks: Mapping[str, Any]) -> None:
    """By paths, since `nnx.Optimizer` keeps the masks in variables of another kind."""
    shapes = {path: np.shape(leaf) for path, leaf in leaf_paths(params)}
    for path, mask in masks.items():
        if np.shape(mask) != shapes.get(path):
            there = f"it has shape {shapes[path]}" if path in shapes else "there is none"
            raise ValueError(
                f"the state has a mask of shape {np.shape(mask)} for {path}, and {there} in the "
                "parameters: pass the parameters that it was made for."
            )


def _cells_of(row: SummaryRow) -> tuple[str, ...]:
    shape, size = "x".join(map(str, row.shape)), f"{row.size:,}"
    if row.layer is None:
        return (row.path, shape, "not pruned", size, size, "1")
    if row.kept is None:
        return (row.path, shape, str(row.layer), size, "", "")
    low, high = row.kept.min() / row.layer.size, row.kept.max() / row.layer.size
    share = f"{low:.4f}" if low == high else f"{low:.4f} to {high:.4f}"
    return (row.path, shape, str(row.layer), size, f"{row.kept.sum():,}", share)


def _total(name: str, rows: Any) -> tuple[str, ...]:
    size = sum(row.size for row in rows)
    if any(row.layer is not None and row.kept is None for row in rows):
        return (name, "", "", f"{size:,}", "", "")
    kept = sum(row.size if row.kept is None else int(row.kept.sum()) for row in rows)
    return (name, "", "", f"{size:,}", f"{kept:,}", f"{kept / max(size, 1):.4f}")
