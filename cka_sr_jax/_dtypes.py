"""The types that sums, products and counts are computed in."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def float32_or_wider(dtype: DTypeLike) -> np.dtype:
    """float32, or float64 where `dtype` is; complex types stay complex.

    As `jnp.promote_types(dtype, jnp.float32)`, and the same under strict promotion.
    """
    floating = jnp.issubdtype(dtype, jnp.inexact)
    return np.promote_types(dtype if floating else np.float32, np.float32)


def _x64_context() -> Any:
    """`jax.enable_x64`, which jax 0.7 has under another name."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64
    return importlib.import_module("jax.experimental").enable_x64


enable_x64 = _x64_context()
