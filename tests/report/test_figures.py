import sys

import numpy as np
import pytest

from cka_sr_jax.report import (
    LayerRow,
    cka_curve,
    cka_heatmap,
    density_bars,
    learning_curves,
    mask_curves,
)
from cka_sr_jax.report.figures import series

PNG = b"\x89PNG\r\n\x1a\n"


def _records(**changes):
    train = {"split": "train", "step": 10, "epoch": 1.0, "loss": 2.0, "accuracy": 0.3,
             "penalty": 20.0, "learning_rate": 0.1, "density": 0.05}  # fmt: skip
    validation = {"split": "validation", "step": 10, "epoch": 1.0, "loss": 2.1, "accuracy": 0.2,
                  "cka_within_stage": 0.8}  # fmt: skip
    return [{**train, **changes}, {**validation, **changes}]


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


@pytest.mark.parametrize(
    "records",
    [
        [],
        _records(),
        [record for epoch in range(100) for record in _records(epoch=epoch)],
        _records(cka_penalty=None, cka_within_stage=None),
        _records(cka_cross_stage=0.5),
        _records(cka_cross_stage=0.5, cka_within_stage=None),
        [{"split": "test-selection", "epoch": 1.0, "accuracy": 0.5, "cka_within_stage": -0.1}],
        [{"split": "train", "step": 3}],
    ],
    ids=["empty", "full", "long", "null", "stages", "across", "test-selection", "bare"],
)
def test_curves_draw_whatever_was_logged(records):
    assert learning_curves(records).startswith(PNG)
    assert cka_curve(records).startswith(PNG)
    assert mask_curves(records).startswith(PNG)


def test_mask_curves():
    records = [
        {"split": "masks", "epoch": e, "density": 0.5, "explored": 0.6, "churn": 0.1, "flops": 9}
        for e in range(3)
    ]
    names = [f"density/layer{i}/kernel" for i in range(12)]
    layers = [{"split": "layers", "epoch": e, **dict.fromkeys(names, 0.5)} for e in range(3)]
    assert mask_curves([*records, *layers]).startswith(PNG)


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_heatmap(size):
    matrix = np.full((size, size), -0.1)
    np.fill_diagonal(matrix, 1)
    matrix[:1, 1:2] = np.nan
    names = [f"$x_{i}<" for i in range(size)]  # no mathematics, no mark-up
    groups = [f"stage{i // 3}" for i in range(size)]
    assert cka_heatmap(matrix, names, groups).startswith(PNG)


def test_heatmap_checks_its_sizes():
    with pytest.raises(ValueError, match=r"\(3, 3\) does not fit 2 names and 3 groups"):
        cka_heatmap(np.eye(3), ["a", "b"], ["s", "s", "s"])


@pytest.mark.parametrize("densities", [[], [0.0], [0.05, 1.0], [0.03] * 60])
def test_density_bars(densities):
    rows = [
        LayerRow(f"$layer{i}/kernel", (10, 10), 100, int(100 * density), density, 200, 10)
        for i, density in enumerate(densities)
    ]
    assert density_bars([*rows, LayerRow("bias", (3,), 3, 3, 1.0, 0, 0)]).startswith(PNG)


def test_figures_leave_pyplot_alone():
    learning_curves(_records())
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
