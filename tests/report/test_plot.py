"""A heat map out of features, or out of a CKA matrix with its names."""

import jax
import numpy as np
import pytest

import cka_sr_jax
from cka_sr_jax.report import plot_cka
from cka_sr_jax.similarity import CKAMatrix, cka_matrix

FEATURES = tuple(jax.random.normal(jax.random.key(0), (4, 12, 5)))


def drawn(figure):
    """(matrix, names of the rows, places of the lines between stages) of a heat map."""
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    matrix = np.ma.filled(axes.images[0].get_array(), np.nan)
    return matrix, names, [line.get_ydata()[0] for line in axes.lines[::2]]


@pytest.mark.parametrize(
    ("features", "names", "lines"),
    [
        (list(FEATURES), ["0", "1", "2", "3"], []),
        (
            {"stem": FEATURES[:1], "stage1": FEATURES[1:]},  # as sown
            ["stem", "stage1.0", "stage1.1", "stage1.2"],
            [0.5],
        ),
        (
            {"Block_0": {"out": FEATURES[:2]}, "Block_1": {"out": FEATURES[2:]}},
            ["Block_0.0", "Block_0.1", "Block_1.0", "Block_1.1"],
            [1.5],
        ),
    ],
)
def test_features_as_the_penalty_takes_them(features, names, lines):
    matrix, rows, between = drawn(plot_cka(features))
    np.testing.assert_allclose(matrix, cka_matrix(list(FEATURES)), atol=1e-6)
    assert (rows, between) == (names, lines)


def test_the_first_samples_alone():
    matrix, _, _ = drawn(plot_cka(FEATURES, samples=6))
    np.testing.assert_allclose(matrix, cka_matrix(FEATURES, samples=6), atol=1e-6)
    with pytest.raises(ValueError, match="13 samples and the batch has 12"):
        plot_cka(FEATURES, samples=13)


def test_a_matrix_of_a_data_set():
    values = np.array([[1.0, 0.25], [0.25, 1.0]])
    matrix, rows, between = drawn(plot_cka(CKAMatrix(values, ("a", "b"), ("one", "two"))))
    np.testing.assert_array_equal(matrix, values)
    assert (rows, between) == (["a", "b"], [0.5])
    with pytest.raises(ValueError, match="samples=8 comes too late for a CKA matrix"):
        plot_cka(CKAMatrix(values, ("a", "b"), ("one", "two")), samples=8)


def test_a_notebook_shows_it():
    assert plot_cka(FEATURES)._repr_png_().startswith(b"\x89PNG\r\n\x1a\n")
    assert cka_sr_jax.plot_cka is plot_cka
