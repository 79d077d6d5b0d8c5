"""What a run leaves to look at: tables of sparsity and FLOPs, figures, and one HTML page."""

from cka_sr_jax.report.console import console_table, say
from cka_sr_jax.report.figures import (
    cka_curve,
    cka_heatmap,
    density_bars,
    learning_curves,
    mask_curves,
)
from cka_sr_jax.report.html import render_page
from cka_sr_jax.report.markdown import markdown_table
from cka_sr_jax.report.metrics import read_metrics
from cka_sr_jax.report.plot import plot_cka
from cka_sr_jax.report.write import write_report

__all__ = [
    "cka_curve",
    "cka_heatmap",
    "console_table",
    "density_bars",
    "learning_curves",
    "markdown_table",
    "mask_curves",
    "plot_cka",
    "read_metrics",
    "render_page",
    "say",
    "write_report",
]
