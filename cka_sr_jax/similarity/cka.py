"""Centered kernel alignment (CKA) between layers, and CKA-SR, the penalty on it.

    features -> Gram matrices -> centered Grams -> HSIC matrix -> CKA matrix -> penalty

The first two steps are in `grams`. Every function takes features whose first axis is the sample;
the other axes are flattened, never pooled. All are pure and work under `jit`, `vmap` and `grad`.
Results are in float32, or in the features' type where that is wider.

Sources: Kornblith et al. 2019 (arXiv 1905.00414), Song et al. 2012 (the unbiased HSIC), Nguyen et
al. 2021 (arXiv 2010.15327, averaging HSIC over minibatches), and the CKA-SR paper, "Learning Sparse
Neural Networks with Identity Layers" (arXiv 2307.07389).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax.similarity.energies import Energy, energy_of
from cka_sr_jax.similarity.grams import (
    Kernel,
    center,
    feature_leaves,
    rbf_grams,
    scaled_grams,
    split_samples,
)
from cka_sr_jax.similarity.pairs import Pairs, Reduction, pair_weights, sum_over_pairs


def cka(
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    kernel: Kernel = "linear",
    debiased: bool = True,
) -> Float[Array, ""]:
    """CKA of two features of the same n samples.

      CKA(x, y) = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)),   HSIC as in `hsic_matrix`.

    The debiased value lies in [-1, 1], with mean about 0 for independent features. The biased value
    lies in [0, 1], and is near 1 even for independent features if they are wide and samples few.
    A feature that is constant over the samples has value 0 and gradient 0.

      >>> x, y = jax.random.normal(jax.random.key(0), (2, 200, 64))
      >>> print(cka(x, 3 * x + 1).round(3), abs(cka(x, y)) < 0.05)
      1.0 True

    Args:
      x, y: features [n, ...]; beyond n, their shapes may differ.
      kernel, debiased: as in `cka_penalty`.

    Raises:
      ValueError: different n; n < 4 (n < 2 when biased); unknown kernel.
    """
    return cka_matrix((x, y), kernel=kernel, debiased=debiased)[0, 1]


def hsic_matrix(
    features: Any,
    *,
    samples: int | None = None,
    batches: int = 1,
    kernel: Kernel = "linear",
    debiased: bool = True,
    axis_name: str | None = None,
) -> Float[Array, "l l"]:
    """HSIC between every two of the l features.

    With K and L the n x n Gram matrices of two features, their diagonals set to 0, the debiased
    HSIC (Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3) is, for n >= 4,

      HSIC_1 = [tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)),

    computed as <U(K), U(L)> / (n(n-3)) with U-centered Grams. The biased HSIC, with the diagonals,
    is tr(KHLH) / (n-1)^2, H = I - 11'/n.

    For the CKA of a whole data set, average these matrices over its minibatches and pass the mean
    to `cka_from_hsic`:

      >>> x = jax.random.normal(jax.random.key(0), (32, 5))
      >>> batches = [(x[i : i + 8], x[i : i + 8] ** 3) for i in (0, 8, 16, 24)]
      >>> matrix = cka_from_hsic(sum(map(hsic_matrix, batches)) / 4)
      >>> matrix.shape
      (2, 2)

    Args:
      features: pytree of arrays [n, ...]. Rows and columns of the result follow its leaves; of a
        mapping, its groups in the mapping's order.
      samples, batches, kernel, debiased, axis_name: as in `cka_penalty`.

    Returns:
      HSIC in the features' units, that is (units of X_i)^2 (units of X_j)^2 for the linear kernel;
      without units for the RBF kernel.

    Raises:
      ValueError: features of different n; fewer than 4 samples (2 when biased); more samples than
        the batch has; an unknown option.
    """
    hsic, scales = _scaled_hsic(features, samples, batches, kernel, debiased, axis_name)
    return hsic * scales[:, None] * scales[None, :]


def cka_from_hsic(hsic: Float[Array, "l l"]) -> Float[Array, "l l"]:
    """CKA_ij = HSIC_ij / sqrt(HSIC_ii HSIC_jj), with value and gradient 0 where HSIC_ii <= 0.

    >>> print(cka_from_hsic(jnp.array([[4.0, 3.0], [3.0, 9.0]])))
    [[1.  0.5]
     [0.5 1. ]]
    """
    variance = jnp.diagonal(hsic)
    undefined = variance <= 0  # and not `> 0`, so that NaN stays NaN
    # The inner `where` keeps 1/sqrt(0) out of the gradient, the outer one out of the value.
    norm = jnp.where(undefined, 0, jax.lax.rsqrt(jnp.where(undefined, 1, variance)))
    return hsic * norm[:, None] * norm[None, :]


def cka_matrix(
    features: Any,
    *,
    samples: int | None = None,
    batches: int = 1,
    kernel: Kernel = "linear",
    debiased: bool = True,
    axis_name: str | None = None,
) -> Float[Array, "l l"]:
    """CKA between every two of the l features: `cka_from_hsic` of their HSIC matrix.

    Less prone to overflow than the two-step route: it drops the features' scale before HSIC squares
    it. Only where the sum of a feature's squares leaves the type (in float32 at deviations below
    about 1e-16 or above 1e17) does the feature count as constant, with value and gradient 0.

      >>> features = jax.random.normal(jax.random.key(0), (3, 16, 10))
      >>> print(jnp.diagonal(cka_matrix(tuple(features))).round(3))
      [1. 1. 1.]

    Args and Raises: as `hsic_matrix`.
    """
    hsic, _ = _scaled_hsic(features, samples, batches, kernel, debiased, axis_name)
    return cka_from_hsic(hsic)


def cka_penalty(
    features: Any,
    *,
    samples: int | None = None,
    batches: int = 1,
    pairs: Pairs = "group",
    decay: float = 1.0,
    energy: Energy = "none",
    reduction: Reduction = "sum",
    kernel: Kernel = "linear",
    debiased: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """CKA-SR: the sum of CKA(X_i, X_j) over the pairs of layers of each stage.

    The paper's loss term is beta * sum_stages sum_i sum_j CKA(X_i, X_j). This ordered double sum
    counts each pair twice (appendix, eq. 11). Here it has no diagonal i = j, which would add the
    constant 1 per layer. Add it to the task loss: `loss + beta * cka_penalty(features)`.

      >>> x0, x1, x2 = jax.random.normal(jax.random.key(0), (3, 16, 10))
      >>> penalty = cka_penalty({"stage1": (x0, x1), "stage2": (x2, 2 * x2)})
      >>> print(jnp.isclose(penalty, 2 * (cka(x0, x1) + 1.0)))
      True

    Args:
      features: pytree of arrays [n, ...] over the same samples. Each top-level key of a mapping is
        one group (the paper's stages); anything else is a single group. What the top-level
        module's `self.sow("features", "stage1", x)` collects goes straight in; what blocks sow
        inside goes through `stage_features` first.
      samples: use the first `samples` of each batch; None takes all.
      batches: use this many disjoint consecutive sub-batches of `samples` each (of as many samples
        as fit, if None), and average HSIC over them before the ratio.
      pairs: "group", the pairs inside each group; "neighbors", only those next to each other in a
        group; "all", also across groups; or pairs of indices into the features in order.
      decay: a pair with d - 1 features between them counts decay^(d-1); 1 counts all alike, as the
        paper does.
      energy: "none" sums CKA itself; "log", "inverse" and "inverse_square" sum an energy of the
        angle arccos(CKA), which goes on parting layers that are all but equal (`energy_of`).
      reduction: "sum" counts each pair twice, as the paper does; "mean" averages over the pairs,
        by their weights (AugCKA-SR, appendix eq. 14, with pairs="all").
      kernel: "linear", K = XX'; or "rbf", K_ij = exp(-d_ij^2 / (2 s^2)) with bandwidth s half the
        median distance.
      debiased: the unbiased HSIC; the biased one is for comparison only.
      axis_name: average HSIC over the devices of this mapped axis before the ratio; None leaves
        each device its own CKA.

    Returns:
      A scalar without units: without energy, for P pairs in [-2P, 2P], or in [-1, 1] with
      reduction="mean".

    Raises:
      ValueError: no pair to penalize; features of different n; fewer than 4 samples (2 when
        biased); more samples than the batch has; an unknown option; a decay outside (0, 1].
    """
    weights = pair_weights(features, pairs, decay)
    hsic, _ = _scaled_hsic(features, samples, batches, kernel, debiased, axis_name)
    return sum_over_pairs(energy_of(cka_from_hsic(hsic), energy), weights, reduction)


def _scaled_hsic(
    features: Any,
    samples: int | None,
    batches: int,
    kernel: str,
    debiased: bool,
    axis_name: str | None,
) -> tuple[Float[Array, "l l"], Float[Array, " l"]]:
    """HSIC of the features' Grams, each divided by its own scale; and those scales.

    HSIC in the features' units is the first result times the outer product of the second.
    """
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"kernel={kernel!r} is unknown: use 'linear' or 'rbf'.")
    parts = split_samples(feature_leaves(features), samples, batches, debiased)
    n = parts[0].shape[1]
    grams, scales = scaled_grams(parts, axis_name)
    if kernel == "rbf":
        grams, scales = rbf_grams(grams), jnp.ones_like(scales)
    stacked = center(grams, debiased).reshape(batches, len(parts), n * n)
    # One matrix product gives all pairs, summed over the sub-batches.
    hsic = jnp.einsum("kia,kja->ij", stacked, stacked, precision=jax.lax.Precision.HIGHEST)
    hsic = hsic / (batches * (n * (n - 3) if debiased else (n - 1) ** 2))
    if axis_name is not None:
        hsic = jax.lax.pmean(hsic, axis_name)
    return hsic, scales
