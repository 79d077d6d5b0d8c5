"""Regularized canonical correlation (CCA) between layers, which CKA-SR is compared with.

Features with more columns than samples have canonical correlations of 1 throughout, so CCA needs a
ridge. Even then it is near 1 for independent wide features, unless it is debiased as CKA is. Table
3 of the CKA-SR paper has a CCA penalty and does not define it; this project uses the one here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax.similarity.cka import cka_from_hsic
from cka_sr_jax.similarity.energies import Energy, energy_of
from cka_sr_jax.similarity.grams import center, centered_grams
from cka_sr_jax.similarity.pairs import Pairs, Reduction, pair_weights, sum_over_pairs


def cca_matrix(
    features: Any, *, samples: int | None = None, ridge: float = 0.1, debiased: bool = True
) -> Float[Array, "l l"]:
    """CKA of every two of the l features after each is whitened.

      CCA_ij = HSIC(P_i, P_j) / sqrt(HSIC(P_i, P_i) HSIC(P_j, P_j)),
      P = K (K + ridge tr(K)/n I)^-1,   K the centered Gram matrix of a feature.

    HSIC is the unbiased one of `hsic_matrix` with P for the Gram; the biased one is tr(P_i P_j). At
    ridge 0, P projects onto the feature's columns, and tr(P_i P_j) is the sum of the squared
    canonical correlations. CCA then is R^2_CCA (Kornblith et al. 2019, eq. 6) if both features have
    equally many columns. A large ridge turns it into linear CKA. A feature that is constant over
    the samples has value 0.

      >>> x = jax.random.normal(jax.random.key(0), (50, 4))
      >>> mixed = x @ jax.random.normal(jax.random.key(1), (4, 4))
      >>> print(cca_matrix((x, mixed), ridge=1e-4)[0, 1].round(2))
      1.0

    Args:
      features: pytree of arrays [n, ...] over the same samples.
      samples: use the first `samples`; None takes all.
      ridge: in units of K's mean eigenvalue, tr(K)/n.
      debiased: the unbiased HSIC; the biased one, in [0, 1], is for comparison only.

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
    # A Gram of 0 stays 0 with any ridge above 0.
    shift = ridge * jnp.where(mean_eigenvalue == 0, 1, mean_eigenvalue)
    identity = jnp.eye(grams.shape[-1], dtype=grams.dtype)[None]
    whitened = jnp.linalg.solve(grams + shift[:, None, None] * identity, grams)
    flat = center(whitened[None], debiased).reshape(len(whitened), -1)
    return cka_from_hsic(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))


def cca_penalty(
    features: Any,
    *,
    samples: int | None = None,
    pairs: Pairs = "group",
    decay: float = 1.0,
    energy: Energy = "none",
    reduction: Reduction = "sum",
    ridge: float = 0.1,
    debiased: bool = True,
) -> Float[Array, ""]:
    """The sum of CCA_ij over pairs of layers, as `cka_penalty` sums CKA.

      >>> x, y = jax.random.normal(jax.random.key(0), (2, 16, 10))
      >>> print(jnp.isclose(cca_penalty((x, y)), 2 * cca_matrix((x, y))[0, 1]))
      True

    Args:
      features, samples, pairs, decay, energy, reduction: as in `cka_penalty`.
      ridge, debiased: as in `cca_matrix`.

    Raises:
      ValueError: as `cca_matrix`; no pair; an unknown option; a decay outside (0, 1].
    """
    weights = pair_weights(features, pairs, decay)
    matrix = cca_matrix(features, samples=samples, ridge=ridge, debiased=debiased)
    return sum_over_pairs(energy_of(matrix, energy), weights, reduction)
