"""What a model has and costs: parameters, densities and FLOPs of each layer, and time."""

from cka_sr_jax.accounting.compact import Point, Wiring, shrink
from cka_sr_jax.accounting.flops import kernel_positions
from cka_sr_jax.accounting.layers import (
    LayerRow,
    fold_vectors,
    layer_rows,
    row_text,
    total_row,
)
from cka_sr_jax.accounting.summary import Summary, SummaryRow, summary, text_table
from cka_sr_jax.accounting.timing import interleaved_seconds, interleaved_times

__all__ = [
    "LayerRow",
    "Point",
    "Summary",
    "SummaryRow",
    "Wiring",
    "fold_vectors",
    "interleaved_seconds",
    "interleaved_times",
    "kernel_positions",
    "layer_rows",
    "row_text",
    "shrink",
    "summary",
    "text_table",
    "total_row",
]
