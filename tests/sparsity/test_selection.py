"""`top_k_mask` against a stable sort."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from cka_sr_jax.sparsity import top_k_mask
from cka_sr_jax.sparsity.selection import top_k_masks

select = jax.jit(top_k_mask)
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38]


def stable_top_k(scores, k, where):
    """The k candidates of highest score; NaN last, ties by index."""
    order = [i for i in range(len(scores)) if where[i]]
    order.sort(key=lambda i: (np.isnan(scores[i]), -np.nan_to_num(scores[i], nan=0.0), i))
    mask = np.zeros(len(scores), bool)
    mask[order[: max(k, 0)]] = True
    return mask


@pytest.mark.parametrize("size", [1, 2, 7, 33])
@given(data=st.data())
@settings(max_examples=60)
def test_top_k_is_the_head_of_a_stable_sort(size, data):
    value = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(-1, 1, width=32))
    scores = data.draw(hnp.arrays(np.float32, size, elements=value))
    where = data.draw(hnp.arrays(bool, size))
    k = data.draw(st.integers(-1, size + 1))
    np.testing.assert_array_equal(select(scores, k, where), stable_top_k(scores, k, where))
    every = np.ones(size, bool)
    np.testing.assert_array_equal(select(scores, k), stable_top_k(scores, k, every))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_any_shape_and_type_and_many_ties(dtype):
    scores = jax.random.normal(jax.random.key(0), (50, 40)).astype(dtype)
    scores = jnp.where(scores > 1, scores, 0)  # most are tied
    for k in (0, 1, 100, 1000, 1999, 2000):
        expected = stable_top_k(np.asarray(scores, np.float32).ravel(), k, np.ones(2000, bool))
        np.testing.assert_array_equal(select(scores, k), expected.reshape(50, 40))


def test_k_is_traced_and_vmapped():
    scores = jax.random.normal(jax.random.key(0), (3, 20))
    masks = jax.vmap(top_k_mask)(scores, jnp.array([0, 7, 20]))
    assert masks.sum(1).tolist() == [0, 7, 20]


def test_layers_ranked_together():
    scores = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([2.0, 1.0, 5.0], jnp.bfloat16)}
    masks = top_k_masks(scores, 4)
    assert masks["a"].tolist() == [[True, True]]
    assert masks["b"].tolist() == [True, False, True]
    where = {"a": jnp.array([[False, True]]), "b": jnp.ones(3, bool)}
    assert top_k_masks(scores, 1, where)["a"].tolist() == [[False, False]]


@pytest.mark.parametrize("k", [2**40, np.int64(2**32), np.int64(2**31 + 1), np.uint32(2**32 - 1)])
def test_a_count_beyond_int32_is_all(k):
    assert top_k_mask(jnp.arange(5.0), k).all()
    if isinstance(k, np.uint32):
        assert select(jnp.arange(5.0), k).all()
    elif isinstance(k, int):
        assert not top_k_mask(jnp.arange(5.0), -k).any()


@pytest.mark.parametrize("k", [2.7, 2.0, np.float32(2), jnp.asarray(2.0)])
def test_a_count_that_is_no_whole_number_is_refused(k):
    with pytest.raises(TypeError):
        top_k_mask(jnp.arange(4.0), k)
