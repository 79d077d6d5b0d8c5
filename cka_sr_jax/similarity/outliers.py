"""How much of a feature's variance a few samples hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider


def outlier_share(x: Float[Array, "n ..."], fraction: float = 0.01) -> Float[Array, ""]:
    """The share of a feature's variance that the samples farthest from its mean hold.

    With v_i = |x_i - mean(x)|^2 and k = fraction * n, rounded and at least 1:

      outlier_share = (sum of the k largest v_i) / (sum of all v_i).

    The value is k / n where all samples are equally far from the mean, 0 where the feature is
    constant, and NaN where it is not finite. Such samples weigh most in CKA (Davari et al. 2023,
    arXiv 2210.16156). A penalty on CKA can therefore fall because a few samples outgrow the others
    in later layers; look at this number beside it.

      >>> x = jnp.ones((100, 5)).at[:50].set(-1.0)
      >>> print(f"{outlier_share(x):.2f} {outlier_share(x.at[0].multiply(100.0)):.2f}")
      0.01 0.98

    Args:
      x: one feature of n >= 1 samples; the other axes are flattened.
      fraction: the share of the samples that count as outliers, in (0, 1].

    Raises:
      ValueError: `fraction` is outside of (0, 1]; `x` is not one array of 1 sample or more.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} is not in (0, 1]: try 0.01.")
    shape = getattr(x, "shape", None)
    if not shape or not shape[0]:
        given = f"a {type(x).__name__}" if shape is None else f"one of shape {shape}"
        raise ValueError(
            f"outlier_share takes one array of shape [n, ...] with n >= 1 samples, not {given}: "
            "call it for each feature."
        )
    x = jnp.reshape(x, (len(x), -1)).astype(float32_or_wider(x.dtype))
    distances = jnp.sum(jnp.square(x - x.mean(axis=0, keepdims=True)), axis=1)
    total = jnp.sum(distances)
    largest, _ = jax.lax.top_k(distances, max(1, round(fraction * len(x))))
    constant = total == 0  # and not `total <= 0`, so that NaN stays NaN
    return jnp.where(constant, 0, jnp.sum(largest) / jnp.where(constant, 1, total))
