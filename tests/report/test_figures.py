"""The report's figures: their axes, labels and data."""

import sys

import numpy as np
import pytest

from cka_sr_jax.accounting import LayerRow
from cka_sr_jax.report.figures import (
    cka_curve,
    cka_heatmap,
    density_bars,
    learning_curves,
    mask_curves,
    rank_curves,
    series,
    to_png,
)


def records_of(**changes):
    train = {"split": "train", "step": 10, "epoch": 1.0, "loss": 2.0, "accuracy": 0.3,
             "penalty": 20.0, "learning_rate": 0.1, "density": 0.05}  # fmt: skip
    validation = {"split": "validation", "step": 10, "epoch": 1.0, "loss": 2.1, "accuracy": 0.2,
                  "cka_within_stage": 0.8}  # fmt: skip
    return [{**train, **changes}, {**validation, **changes}]


def lines_of(axes):
    """{label in the legend, or position: points} of each line."""
    legend = axes.get_legend()
    names = [text.get_text() for text in legend.get_texts()] if legend else range(len(axes.lines))
    return dict(zip(names, (line.get_xydata().tolist() for line in axes.lines), strict=True))


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def ticks_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_series_leaves_out_what_is_missing_or_not_finite():
    records = [
        {"split": "train", "epoch": 1, "loss": 2.0},
        {"split": "train", "epoch": 2, "loss": None},
        {"split": "train", "epoch": 3, "loss": float("nan")},
        {"split": "train", "epoch": 4},
        {"split": "train", "loss": 1.0},
        {"split": "validation", "epoch": 5, "loss": 3.0},
        {"split": "train", "epoch": 6, "loss": 1.0},
    ]
    assert series(records, "train", "loss") == ([1.0, 6.0], [2.0, 1.0])


def test_learning_curves_have_a_panel_for_loss_accuracy_and_learning_rate():
    loss, accuracy, rate = learning_curves(records_of() + records_of(epoch=2.0)).axes
    assert [axes.get_ylabel() for axes in (loss, accuracy, rate)] == [
        "loss (nats)", "accuracy (%)", "learning rate",
    ]  # fmt: skip
    assert {axes.get_xlabel() for axes in (loss, accuracy, rate)} == {"epoch"}
    assert lines_of(loss) == {"training": [[1, 2.0], [2, 2.0]], "validation": [[1, 2.1], [2, 2.1]]}
    assert lines_of(accuracy) == {
        "training": [[1, 0.3], [2, 0.3]],
        "validation": [[1, 0.2], [2, 0.2]],
    }
    assert accuracy.yaxis.get_major_formatter().convert_to_pct(0.3) == 30
    assert lines_of(rate) == {0: [[1, 0.1], [2, 0.1]]}
    assert rate.get_ylim()[0] == 0


def test_selection_on_the_test_set_is_in_the_legend():
    records = [{"split": "test-selection", "epoch": 1.0, "accuracy": 0.5}]
    loss, accuracy, _ = learning_curves(records).axes
    assert list(lines_of(accuracy)) == ["test set (used for selection)"]
    assert texts_of(loss) == ["not logged"]


def test_few_points_have_markers_and_many_do_not():
    few, many = (
        learning_curves([r for epoch in range(n) for r in records_of(epoch=epoch)]).axes[0].lines[0]
        for n in (40, 41)
    )
    assert few.get_marker() == "o"
    assert many.get_marker() == ""


def test_cka_curve_has_the_penalty_below():
    cka, penalty = cka_curve(records_of()).axes
    assert cka.get_ylabel() == "mean CKA of pairs (0 to 1)"
    assert lines_of(cka) == {"of one stage": [[1, 0.8]]}
    assert penalty.get_ylabel() == "CKA penalty before beta"
    assert lines_of(penalty) == {0: [[1, 20.0]]}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"cka_cross_stage": 0.5}, {"of one stage": [[1, 0.8]], "of two stages": [[1, 0.5]]}),
        ({"cka_cross_stage": 0.5, "cka_within_stage": None}, {"of two stages": [[1, 0.5]]}),
    ],
)
def test_cka_within_and_across_stages(changes, lines):
    validation = records_of(**changes)[1:]
    (axes,) = cka_curve(validation).axes
    assert lines_of(axes) == lines


def test_negative_cka_is_in_view():
    record = {"split": "test-selection", "epoch": 1.0, "cka_within_stage": -0.1}
    (axes,) = cka_curve([record]).axes
    assert axes.get_ylim()[0] <= -0.1
    assert axes.get_ylim()[1] == 1.02


@pytest.mark.parametrize("records", [[], [{"split": "train", "step": 3}]])
def test_curves_say_that_nothing_was_logged(records):
    for axes in (*learning_curves(records).axes, *cka_curve(records).axes):
        assert texts_of(axes) == ["not logged"]
    assert all(not line.get_xdata().size for ax in mask_curves(records).axes for line in ax.lines)


def test_rank_curves_have_a_line_for_each_feature():
    records = [
        {"split": "ranks", "step": 10 * e, "epoch": e, "stage1.0": 9.0 - e, "stage1.1": 4.0}
        for e in (1.0, 2.0)
    ]
    (axes,) = rank_curves([*records_of(), *records]).axes
    assert lines_of(axes) == {"stage1.0": [[1, 8.0], [2, 7.0]], "stage1.1": [[1, 4.0], [2, 4.0]]}
    assert axes.get_ylabel() == "effective rank of the features"


def test_mask_curves():
    records = [
        {"split": "masks", "epoch": e, "density": 0.5, "explored": 0.6, "churn": 0.1, "flops": 9}
        for e in range(3)
    ]
    layers = [
        {"split": "layers", "epoch": e, "density/stem/kernel": 0.5, "density/head/kernel": 0.25}
        for e in range(2)
    ]
    training = [{"split": "train", "epoch": 1, "training_flops": 100}]
    figure = mask_curves([*records, *layers, *training])
    shares, by_layer, flops, total = figure.axes
    assert lines_of(shares) == {
        "density": [[0, 0.5], [1, 0.5], [2, 0.5]],
        "kept at least once (R_s)": [[0, 0.6], [1, 0.6], [2, 0.6]],
        "changed (churn)": [[0, 0.1], [1, 0.1], [2, 0.1]],
    }
    assert {line.get_drawstyle() for line in shares.lines} == {"steps-post"}
    assert lines_of(by_layer) == {"stem": [[0, 0.5], [1, 0.5]], "head": [[0, 0.25], [1, 0.25]]}
    assert lines_of(flops) == {0: [[0, 9], [1, 9], [2, 9]]}
    assert lines_of(total) == {0: [[1, 100]]}
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "share of weights (%)", "density of each layer (%)", "FLOPs of one image, forward",
        "FLOPs of training so far",
    ]  # fmt: skip


def test_a_legend_of_many_layers_is_left_out():
    names = [f"density/layer{i}/kernel" for i in range(12)]
    layers = mask_curves([{"split": "layers", "epoch": 1, **dict.fromkeys(names, 0.5)}]).axes[1]
    assert len(layers.lines) == 12
    assert layers.get_legend() is None


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_heatmap_shows_the_matrix_and_its_stages(size):
    matrix = np.full((size, size), -0.1)
    np.fill_diagonal(matrix, 1)
    matrix[:1, 1:2] = np.nan
    names = [f"$x_{i}<" for i in range(size)]  # shown as they are, without mathematics
    groups = [f"stage{i // 3}" for i in range(size)]
    axes, bar = cka_heatmap(matrix, names, groups).axes
    (image,) = axes.images
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix)
    assert image.get_clim() == (0, 1)
    assert bar.get_ylabel() == "CKA (0 to 1)"
    stages = list(dict.fromkeys(groups))
    assert ticks_of(axes.yaxis) == ticks_of(axes.xaxis) == (names if size <= 30 else stages)
    boundaries = [line.get_ydata()[0] for line in axes.lines[::2]]
    assert boundaries == [2.5 + 3 * i for i in range(len(stages) - 1)]
    values = texts_of(axes)
    assert len(values) == (np.isfinite(matrix).sum() if size <= 12 else 0)
    assert values[:1] == (["1.00"] if size <= 12 else [])


def test_heatmap_checks_its_sizes():
    with pytest.raises(ValueError, match=r"\(3, 3\) does not fit 2 names and 3 groups"):
        cka_heatmap(np.eye(3), ["a", "b"], ["s", "s", "s"])


@pytest.mark.parametrize("densities", [[0.0], [0.05, 1.0], [0.03] * 60])
def test_density_bars_are_in_percent_and_in_order(densities):
    rows = [
        LayerRow(f"$layer{i}/kernel", (10, 10), 100, int(100 * density), density, 200, 10)
        for i, density in enumerate(densities)
    ]
    figure = density_bars([*rows, LayerRow("bias", (3,), 3, 3, 1.0, 0, 0)])
    (axes,) = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], 100 * np.array(densities))
    assert texts_of(axes) == [f"{100 * density:.2f}" for density in densities]
    assert ticks_of(axes.yaxis) == [row.path for row in rows]
    top, bottom = axes.get_ylim()[::-1]
    assert top < 0 < bottom  # the first layer is on top
    assert axes.get_xlabel() == "density: kept weights (%)"


def test_density_bars_without_kernels_say_so():
    (axes,) = density_bars([LayerRow("bias", (3,), 3, 3, 1.0, 0, 0)]).axes
    assert texts_of(axes) == ["no kernels"]


def test_a_figure_becomes_a_png_image_without_pyplot():
    assert to_png(learning_curves(records_of())).startswith(b"\x89PNG\r\n\x1a\n")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
