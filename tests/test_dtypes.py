"""The type that sums are computed in."""

import jax
import jax.numpy as jnp
import pytest

from cka_sr_jax._dtypes import float32_or_wider

TYPES = ("bool", "uint8", "int32", "float16", "bfloat16", "float32", "float64", "complex64")


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_jaxs_promotion_with_float32(dtype, enable_x64):
    with jax.numpy_dtype_promotion("standard"):
        expected = jnp.promote_types(dtype, jnp.float32)
    assert float32_or_wider(jnp.dtype(dtype)) == expected
