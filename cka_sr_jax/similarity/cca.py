"""Regularized canonical correlation (CCA) between layers, the penalty that CKA-SR is compared with.

Of features with more columns than samples every canonical correlation is 1, so CCA needs a ridge,
and even so it reads near 1 on independent wide features unless it is debiased as CKA is. The CKA-SR
paper's table 3 has a CCA penalty without saying which; this is the one defined here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax.similarity.cka import (
    center,
    centered_grams,
    cka_from_hsic,
    pair_weights,
    sum_over_pairs,
)


def cca_matrix(
    features: Any, *, samples: int | None = None, ridge: float = 0.1, debiased: bool = True
) -> Float[Array, "l l"]:
    """CKA of every two of the l features after each is whitened.

      CCA_ij = HSIC(P_i, P_j) / sqrt(HSIC(P_i, P_i) HSIC(P_j, P_j)),
      P = K (K + ridge tr(K)/n I)^-1,  K the centered Gram matrix of a feature,

    HSIC being the unbiased one of `cka.hsic_matrix` with P for the Gram. The biased one is
    tr(P_i P_j): at ridge 0 P projects onto the feature's columns and that is the sum of the squared
    canonical correlations, so that CCA is their R^2_CCA (Kornblith et al. 2019, eq. 6) where both
    have as many columns; a large ridge makes it linear CKA. A feature without variation between
    samples has value 0.

    Args:
      features: pytree of arrays [n, ...] over the same samples.
      samples: use the first `samples`; None takes all.
      ridge: in units of K's mean eigenvalue.
      debiased: the biased one, in [0, 1], is for comparison only.

    Raises:
      ValueError: ridge not positive; fewer than 4 samples (2 when biased); more samples than the
        features have; features of different n.
    """
    if not ridge > 0:
        raise ValueError(
            f"ridge={ridge} is not positive: without one all wide features are alike; try 0.1."
        )
    grams = centered_grams(features, samples, debiased=debiased)
    mean_eigenvalue = jnp.trace(grams, axis1=1, axis2=2) / grams.shape[-1]
    # A Gram of 0 is left alone by any ridge but 0.
    shift = ridge * jnp.where(mean_eigenvalue == 0, 1, mean_eigenvalue)
    identity = jnp.eye(grams.shape[-1], dtype=grams.dtype)[None]
    whitened = jnp.linalg.solve(grams + shift[:, None, None] * identity, grams)
    flat = center(whitened[None], debiased).reshape(len(whitened), -1)
    return cka_from_hsic(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))


def cca_penalty(
    features: Any,
    *,
    samples: int | None = None,
    pairs: Literal["group", "all"] | Iterable[tuple[int, int]] = "group",
    reduction: Literal["sum", "mean"] = "sum",
    ridge: float = 0.1,
    debiased: bool = True,
) -> Float[Array, ""]:
    """The sum of CCA_ij over pairs of layers, as `cka_penalty` sums CKA.

    Raises:
      ValueError: as `cca_matrix`; no pair; an unknown option.
    """
    weights = pair_weights(features, pairs)
    matrix = cca_matrix(features, samples=samples, ridge=ridge, debiased=debiased)
    return sum_over_pairs(matrix, weights, reduction)
