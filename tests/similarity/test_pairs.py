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


def test_the_sum_counts_each_pair_twice_and_the_mean_once():
    matrix = jnp.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [2.0, 4.0, 9.0]])
    weights = pair_weights(list("abc"), [(0, 1), (1, 2)])
    assert sum_over_pairs(matrix, weights, "sum") == 10
    assert sum_over_pairs(matrix, weights, "mean") == 2.5
