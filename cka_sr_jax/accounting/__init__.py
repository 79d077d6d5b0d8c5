"""What a model has and costs: parameters, densities and FLOPs of each layer."""

from cka_sr_jax.accounting.flops import kernel_positions
from cka_sr_jax.accounting.layers import (
    LayerRow,
    fold_vectors,
    layer_rows,
    row_text,
    total_row,
)

__all__ = [
    "LayerRow",
    "fold_vectors",
    "kernel_positions",
    "layer_rows",
    "row_text",
    "total_row",
]
