"""Which pairs count, and the sum and mean over them."""

import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.similarity.pairs import pair_weights, sum_over_pairs

FEATURES = {"stage1": ("x0", "x1"), "stage2": ("x2",), "stage3": ("x3", "x4")}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("group", [(0, 1), (3, 4)]),
        ("neighbors", [(0, 1), (3, 4)]),
        ("all", [(i, j) for i in range(5) for j in range(i)]),
        ([(0, 4), (4, 0), (2, 1)], [(0, 4), (1, 2)]),
    ],
)
def test_weights_are_one_at_both_places_of_each_pair(pairs, expected):
    weights = pair_weights(FEATURES, pairs)
    naive = np.zeros((5, 5))
    for i, j in expected:
        naive[i, j] = naive[j, i] = 1
    np.testing.assert_array_equal(weights, naive)


def test_neighbors_are_next_to_each_other_in_one_group():
    weights = pair_weights({"stage1": tuple("abcd"), "stage2": tuple("ef")}, "neighbors")
    assert np.argwhere(np.triu(weights)).tolist() == [[0, 1], [1, 2], [2, 3], [4, 5]]


def test_decay_weighs_a_pair_by_the_features_between():
    weights = pair_weights(list("abcd"), "all", decay=0.5)
    np.testing.assert_array_equal(weights[0], [0, 1, 0.5, 0.25])
    np.testing.assert_array_equal(weights, weights.T)
    matrix = jnp.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [2.0, 4.0, 9.0]])
    weights = pair_weights(list("abc"), "all", decay=0.5)
    assert sum_over_pairs(matrix, weights, "sum") == 2 * (1 + 4 + 0.5 * 2)
    assert sum_over_pairs(matrix, weights, "mean") == (1 + 4 + 0.5 * 2) / 2.5


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay={decay} is not in \(0, 1\]: use 1 .*neighbors"):
        pair_weights(list("abc"), "all", decay=decay)


def test_the_sum_counts_each_pair_twice_and_the_mean_once():
    matrix = jnp.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [2.0, 4.0, 9.0]])
    weights = pair_weights(list("abc"), [(0, 1), (1, 2)])
    assert sum_over_pairs(matrix, weights, "sum") == 10
    assert sum_over_pairs(matrix, weights, "mean") == 2.5
