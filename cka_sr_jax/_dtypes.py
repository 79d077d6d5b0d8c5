"""The type that sums and products are computed in."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def float32_or_wider(dtype: DTypeLike) -> np.dtype:
    """float32, or float64 where `dtype` is; complex types stay complex.

    As `jnp.promote_types(dtype, jnp.float32)`, and the same under strict promotion.
    """
    floating = jnp.issubdtype(dtype, jnp.inexact)
    return np.promote_types(dtype if floating else np.float32, np.float32)
