"""The report's page: one HTML text with its images in it, so it needs no other file."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cka_sr_jax.accounting import LayerRow, fold_vectors, row_text, total_row

DISCLAIMER = "Masked weights save parameters and FLOPs on paper, not time on dense hardware."

# {dotted path in result.json: (its name on the page, its format)}; others keep their path.
RESULTS = {
    "diverged.step": ("Diverged at step", "{:,}"),
    "diverged.before.loss": ("Training loss of the step before", "{:.4f}"),
    "diverged.before.accuracy": ("Training accuracy of the step before", "{:.2%}"),
    "diverged.checkpoint": ("Newest checkpoint, from before", "{:,}"),
    "test.accuracy": ("Test accuracy", "{:.2%}"),
    "test.loss": ("Test loss (nats)", "{:.4f}"),
    "test.images": ("Test images", "{:,}"),
    "validation.accuracy": ("Validation accuracy", "{:.2%}"),
    "validation.loss": ("Validation loss (nats)", "{:.4f}"),
    "test.selected": ("Selected weights", "{}"),
    "test.step": ("Step of these weights", "{:,}"),
    "density": ("Density of the masked kernels", "{:.4f}"),
    "explored": ("Weights kept at least once (R_s)", "{:.4f}"),
    "churn": ("Churn of the last mask update", "{:.4f}"),
    "parameters": ("Parameters", "{:,}"),
    "parameters_kept": ("Parameters kept", "{:,}"),
    "flops_dense": ("FLOPs per example, dense", "{:,}"),
    "flops": ("FLOPs per example, sparse", "{:,}"),
    "training_flops": ("FLOPs of training, sparse", "{:.3g}"),
    "cka_within_stage": ("Mean within-stage CKA", "{:.4f}"),
    "cka_cross_stage": ("Mean cross-stage CKA", "{:.4f}"),
    "outlier_share": ("Variance of features in 1 % of samples", "{:.2%}"),
    "epsilon_sparsity.0.0001": ("Weights below 1e-4 in size, pruned ones too", "{:.2%}"),
    "epsilon_sparsity.0.001": ("Weights below 1e-3 in size, pruned ones too", "{:.2%}"),
    "epsilon_sparsity.0.01": ("Weights below 1e-2 in size, pruned ones too", "{:.2%}"),
    "steps": ("Steps", "{:,}"),
    "epochs": ("Epochs", "{:g}"),
    "devices": ("Devices", "{}"),
    "wall_seconds": ("Training time (s)", "{:,.1f}"),
}

# {figure: (what it shows, its caption)}
_LEARNING = {
    "loss_curve": (
        "Loss over epochs",
        "From metrics.jsonl: loss; in training with beta times the penalty. Training values are "
        "means over the steps since the last record.",
    ),
    "accuracy_curve": ("Accuracy over epochs", "From metrics.jsonl: accuracy."),
    "learning_rate_curve": ("Learning rate over epochs", "From metrics.jsonl: learning_rate."),
}
_RANKS = (
    "Effective rank of each feature over epochs",
    "From metrics.jsonl: ranks, the number of directions in which the features of 128 images vary. "
    "The first features light, the last dark.",
)

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --soft: #5b6168; --line: #dcdfe3;
  --warn: #8a2b00; --warn-back: #fff0e6; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --back: #16181b; --soft: #a3a9b0;
  --line: #34383d; --warn: #ffb98a; --warn-back: #3a2113; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1.25rem; color: var(--text);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
.soft, figcaption { color: var(--soft); }
.warning { color: var(--warn); background: var(--warn-back); border-left: 4px solid var(--warn);
  padding: .6rem 1rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.layers { width: 100%; }
.layers th, .layers td { white-space: nowrap; }
.layers :is(th, td):nth-child(n + 3) { text-align: right; padding: .2rem 0 .2rem .9rem; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
tfoot th, tfoot td { font-weight: 700; border-bottom: 0; }
.results th { color: var(--soft); padding-right: 2rem; }
figure { margin: 0 0 1rem; }
figcaption { font-size: .85rem; margin-top: .35rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.pair { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def render_page(
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    layers: Sequence[LayerRow],
    figures: Mapping[str, bytes],
) -> str:
    """The page as one HTML text, with the images in it and all text escaped.

    Args:
      config: of config.json, nested. The page shows absent keys as unknown.
      result: of result.json, nested. The page leaves out absent keys.
      layers: of `layer_rows`.
      figures: PNG images by name: those of _LEARNING, "cka_curve", "density"; "cka_heatmap" if the
        model has features to compare; "rank_curves" if their rank was logged; "mask_curves" if the
        masks changed in training.
    """
    title = page_title(config, result)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_penalty(config)}
{_selection_warning(result)}
<h2>Results</h2>
{_results_table(result)}
<p>{DISCLAIMER}</p>
<h2>Learning curves</h2>
{_learning(figures)}
<h2>Similarity of the features</h2>
{_similarity(figures)}
<h2>Layers</h2>
{_layers(layers, figures)}
<h2>Config</h2>
<details><summary>config.json</summary><pre>{escape(json.dumps(config, indent=2))}</pre></details>
</body>
</html>
"""


def page_title(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """For example "resnet20 on cifar10: METHOD, density 0.05, beta 0.0001"."""
    flat = flatten(config)
    # The measured density, since a dense run ignores the config's.
    density = result.get("density", flat.get("sparsity.density"))
    return (
        f"{_known(flat.get('model.name'))} on {_known(flat.get('data.name'))}: "
        f"{_known(flat.get('sparsity.rule'))}, density {_known(density)}, "
        f"beta {_known(flat.get('penalty.beta'))}"
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path, such as {"test.accuracy": 0.9}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def has_diverged(result: Mapping[str, Any]) -> bool:
    """Whether a loss of the run was not finite, which result.json holds as null."""
    flat = flatten(result)
    return "diverged.step" in flat or flat.get("test.loss", 0.0) is None


def selected_on_test(result: Mapping[str, Any]) -> bool:
    """Whether result["test"]["selected"] has the word "test" in it, such as "best-test"."""
    selected = str(flatten(result).get("test.selected"))
    return "test" in re.split(
        r"[\W_]+", selected.lower()
    )  # whole words, since "latest" ends in test


def _known(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _penalty(config: Mapping[str, Any]) -> str:
    if flatten(config).get("penalty.beta") == 0:
        return '<p class="soft">The penalty was off (beta is 0).</p>'
    return ""


def _selection_warning(result: Mapping[str, Any]) -> str:
    if not selected_on_test(result):
        return ""
    return (
        '<p class="warning" role="note">Selected on the test set: these weights are the ones that '
        "did best on the test images, so the test accuracy is too high as an estimate for new "
        "data.</p>"
    )


def _results_table(result: Mapping[str, Any]) -> str:
    # The ranks have a figure.
    flat = {k: v for k, v in flatten(result).items() if not k.startswith("effective_rank.")}
    order = [*(key for key in RESULTS if key in flat), *(key for key in flat if key not in RESULTS)]
    missing = "diverged" if has_diverged(result) else "not computed"
    rows = [
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(text)}</td></tr>'
        for label, text in (_result(key, flat[key], missing) for key in order)
    ]
    return f'<table class="results"><tbody>\n{_lines(rows)}\n</tbody></table>'


def _result(key: str, value: Any, missing: str) -> tuple[str, str]:
    label, form = RESULTS.get(key, (key, "{}"))
    if value is None:
        return label, missing
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and key in RESULTS:
        return label, form.format(value)
    return label, _known(value)


def _learning(figures: Mapping[str, bytes]) -> str:
    blocks = [figure_block(figures[name], *texts) for name, texts in _LEARNING.items()]
    return f'<div class="pair">\n{_lines(blocks)}\n</div>'


def _similarity(figures: Mapping[str, bytes]) -> str:
    curve = figure_block(
        figures["cka_curve"],
        "Mean CKA between layers over epochs",
        "From metrics.jsonl, at each evaluation: cka_within_stage, the mean CKA over pairs of "
        "features of one stage, and cka_cross_stage, over pairs of features of two stages. At "
        "training steps: penalty, its value before beta, where logged.",
    )
    if "cka_heatmap" not in figures:
        return f'{curve}\n<p class="soft">This run has no CKA matrix of the trained network.</p>'
    heatmap = figure_block(
        figures["cka_heatmap"],
        "CKA between the features of the trained network",
        "From cka_matrix.csv: CKA between the features of the trained network, with the same "
        "weights as in the results. Lines separate the stages.",
    )
    ranks = figure_block(figures["rank_curves"], *_RANKS) if "rank_curves" in figures else ""
    return f'<div class="pair">\n{curve}\n{heatmap}\n{ranks}\n</div>'


def _layers(layers: Sequence[LayerRow], figures: Mapping[str, bytes]) -> str:
    header = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "layer", "shape", "parameters", "kept", "density", "FLOPs dense", "FLOPs sparse",
            "pruned as",
        )
    )  # fmt: skip
    body = [_layer(row) for row in fold_vectors(layers)]
    table = (
        f'<div class="scroll"><table class="layers">\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{_lines(body)}\n</tbody>\n<tfoot>{_layer(total_row(layers))}</tfoot>\n"
        "</table></div>"
    )
    note = (
        '<p class="soft">FLOPs are those of one example\'s forward pass, 2 per multiply-add of a '
        "kernel; biases, normalization and activations count 0. Densities are counted on the "
        "masks. The total counts every parameter, including those that stay dense. layers.csv "
        "lists each array.</p>"
    )
    caption = "From layers.csv: the share of weights kept in each kernel and embedding."
    bars = figure_block(figures["density"], "Density of each layer", caption)
    if "mask_curves" not in figures:
        return f"{table}\n{note}\n{bars}"
    curves = figure_block(
        figures["mask_curves"],
        "Density, exploration and churn of the masks, and FLOPs, over epochs",
        "From metrics.jsonl, at each update of the masks: density, the share of weights kept; "
        "explored, the share kept at least once so far (R_s); churn, how much the masks changed; "
        "and FLOPs with the kept weights. At each evaluation: each layer's density. At training "
        "steps: FLOPs of the training so far.",
    )
    return f"{table}\n{note}\n{bars}\n{curves}"


def _layer(row: LayerRow) -> str:
    path, *cells = *row_text(row), row.pruned_as
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(path)}</th>{columns}</tr>'


def figure_block(png: bytes, alt: str, caption: str) -> str:
    """An image in the page, with a caption below it."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _lines(rows: Sequence[str]) -> str:
    return "\n".join(rows)
