"""What a run leaves to look at: tables of sparsity and FLOPs, figures, and one HTML page."""

from cka_sr_jax.accounting.flops import kernel_positions
from cka_sr_jax.accounting.layers import LayerRow, console_table, layer_rows, total_row
from cka_sr_jax.report.figures import (
    cka_curve,
    cka_heatmap,
    density_bars,
    learning_curves,
    mask_curves,
)
from cka_sr_jax.report.html import render_page
from cka_sr_jax.report.metrics import read_metrics
from cka_sr_jax.report.write import write_report

__all__ = [
    "LayerRow",
    "cka_curve",
    "cka_heatmap",
    "console_table",
    "density_bars",
    "kernel_positions",
    "layer_rows",
    "learning_curves",
    "mask_curves",
    "read_metrics",
    "render_page",
    "total_row",
    "write_report",
]
