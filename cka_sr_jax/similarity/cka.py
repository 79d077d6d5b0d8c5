"""Centered kernel alignment (CKA) between layers, and CKA-SR, the penalty on it, as pure functions.

features -> Gram matrices -> centered Grams -> HSIC matrix -> CKA matrix -> penalty.

Every function takes features whose first axis is the sample; the other axes are flattened, never
pooled. All are pure and work under `jit`, `vmap` and `grad`, in any floating type: they compute in
float32, or in the features' type where that is wider.

Sources: Kornblith et al. 2019 (arXiv 1905.00414), Song et al. 2012 (the unbiased HSIC), Nguyen et
al. 2021 (arXiv 2010.15327, averaging HSIC over minibatches), and the CKA-SR paper, "Learning Sparse
Neural Networks with Identity Layers" (arXiv 2307.07389).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Literal["linear", "rbf"]

# The RBF kernel's bandwidth as a share of the median distance between samples (Kornblith et al.).
RBF_BANDWIDTH = 0.5


def cka(
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    kernel: Kernel = "linear",
    debiased: bool = True,
) -> Float[Array, ""]:
    """CKA of two features of the same n samples: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    The debiased value lies in [-1, 1] and has mean about 0 for independent features; the biased
    one lies in [0, 1] and reads near 1 there when features are many and samples few.
    A feature without variation between samples has value 0 and gradient 0.

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
    """HSIC between every two of the l features, in the features' own units.

    With K and L the Gram matrices of two features, debiased (Song et al. 2012, eq. 5; Nguyen et
    al. 2021, eq. 3), n >= 4, K and L with their diagonals set to 0:

      HSIC_1 = [tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n(n-3)),

    computed as <U(K), U(L)> / (n(n-3)) with U-centered Grams; biased: tr(KHLH) / (n-1)^2,
    H = I - 11'/n. Average these matrices over minibatches, then call `cka_from_hsic`, to get the
    CKA of a whole data set.

    Args:
      features: pytree of arrays [n, ...]; rows and columns follow its leaves (of a mapping: its
        groups in the mapping's order).
      samples, batches, kernel, debiased, axis_name: as in `cka_penalty`.

    Raises:
      ValueError: as `cka_penalty`, but for its pairs.
    """
    hsic, scales = _scaled_hsic(_leaves(features), samples, batches, kernel, debiased, axis_name)
    return hsic * scales[:, None] * scales[None, :]


def cka_from_hsic(hsic: Float[Array, "l l"]) -> Float[Array, "l l"]:
    """CKA_ij = HSIC_ij / sqrt(HSIC_ii HSIC_jj), with value and gradient 0 where HSIC_ii <= 0."""
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

    Same arguments and errors as `hsic_matrix`. It holds wider ranges than the two steps, since CKA
    does not depend on the features' scale and this drops it before HSIC squares it once more. A
    feature counts as without variation, with value and gradient 0, where even the sum of its
    squares leaves the type: in float32 at deviations below about 1e-16 or above 1e17.
    """
    hsic, _ = _scaled_hsic(_leaves(features), samples, batches, kernel, debiased, axis_name)
    return cka_from_hsic(hsic)


def cka_penalty(
    features: Any,
    *,
    samples: int | None = None,
    batches: int = 1,
    pairs: Literal["group", "all"] | Iterable[tuple[int, int]] = "group",
    reduction: Literal["sum", "mean"] = "sum",
    kernel: Kernel = "linear",
    debiased: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """CKA-SR: the sum of CKA(X_i, X_j) over the pairs of layers of each stage.

    The paper's loss term is beta * sum_stages sum_i sum_j CKA(X_i, X_j), an ordered double sum, so
    each pair counts twice (appendix, eq. 11). This is that sum without its diagonal i = j, which is
    the constant 1 per layer. Add it to the task loss: `loss + beta * cka_penalty(features)`.

    Args:
      features: pytree of arrays [n, ...] over the same samples. Of a mapping each top-level key is
        one group (the paper's stages), so what the top-level module's
        `self.sow("features", "stage1", x)` collects goes straight in; what blocks sow inside, and
        all else, goes through `features.stage_features`. Anything but a mapping is one group.
      samples: use the first `samples` of each batch; None takes all.
      batches: split them off as this many disjoint consecutive sub-batches of `samples` (None: as
        many as fit) and average HSIC over the sub-batches before the ratio.
      pairs: "group", the pairs inside each group; "all", also across groups; or pairs of indices
        into the features in order.
      reduction: "sum" counts each pair twice, as the paper does; "mean" averages over the pairs
        (AugCKA-SR, appendix eq. 14, with pairs="all").
      kernel: "linear", K = XX'; or "rbf", K_ij = exp(-d_ij^2 / (2 s^2)) with bandwidth s half the
        median distance.
      debiased: the unbiased HSIC; the biased one is for comparison only.
      axis_name: average HSIC over the devices of this mapped axis before the ratio; None leaves
        each device its own CKA.

    Raises:
      ValueError: no pair to penalize; features of different n; fewer than 4 samples (2 when
        biased); more samples than the batch has; an unknown option.
    """
    weights = pair_weights(features, pairs)
    hsic, _ = _scaled_hsic(_leaves(features), samples, batches, kernel, debiased, axis_name)
    return sum_over_pairs(cka_from_hsic(hsic), weights, reduction)


def sum_over_pairs(
    matrix: Float[Array, "l l"], weights: np.ndarray, reduction: str
) -> Float[Array, ""]:
    """The sum of the matrix's entries of weight 1, or their mean; errors as `cka_penalty`."""
    total = jnp.sum(matrix * weights)
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / float(weights.sum())
    raise ValueError(f"reduction={reduction!r} is unknown: use 'sum' or 'mean'.")


def outlier_share(x: Float[Array, "n ..."], fraction: float = 0.01) -> Float[Array, ""]:
    """The share of a feature's variance that its samples farthest from the mean hold.

    With v_i = |x_i - mean(x)|^2: the sum of the k largest v_i over the sum of all, k = fraction * n
    rounded, at least 1. It is k / n where all samples are equally far, 0 where the feature does not
    vary, and NaN where it is not finite. CKA depends most on such samples (Davari et al. 2023,
    arXiv 2210.16156), so that a penalty on it may fall because a few outgrow the others in later
    layers: look at this beside it.

    Raises:
      ValueError: `fraction` is not in (0, 1]; `x` is no array of 1 sample or more.
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
    x = jnp.reshape(x, (len(x), -1)).astype(jnp.promote_types(x.dtype, jnp.float32))
    distances = jnp.sum(jnp.square(x - x.mean(axis=0, keepdims=True)), axis=1)
    total = jnp.sum(distances)
    largest, _ = jax.lax.top_k(distances, max(1, round(fraction * len(x))))
    constant = total == 0  # and not `total <= 0`, so that NaN stays NaN
    return jnp.where(constant, 0, jnp.sum(largest) / jnp.where(constant, 1, total))


def centered_grams(
    features: Any, samples: int | None = None, *, debiased: bool = False
) -> Float[Array, "l n n"]:
    """HKH of each feature's linear Gram K, up to a scale of its own; 0 where it does not vary.

    Raises:
      ValueError: fewer than 2 samples, 4 for what is debiased later; more than the features have;
        features of different n.
    """
    parts = _split(_leaves(features), samples, batches=1, debiased=debiased)
    grams, _ = _normalize(jnp.stack([_gram(x) for x in parts], axis=1), axis_name=None)
    return center(grams, debiased=False)[0]


def _groups(features: Any) -> list[list[Any]]:
    """The leaves of each group: of each top-level key of a mapping, else of the whole tree."""
    parts = features.values() if isinstance(features, Mapping) else [features]
    return [jax.tree.leaves(part) for part in parts]


def _leaves(features: Any) -> list[Any]:
    return [leaf for group in _groups(features) for leaf in group]


def pair_weights(features: Any, pairs: Any) -> np.ndarray:
    """Symmetric [l, l] matrix with 1 at each pair to penalize; `pairs` as in `cka_penalty`."""
    count = len(_leaves(features))
    if isinstance(pairs, str):
        if pairs == "group":
            group = np.repeat(
                np.arange(len(_groups(features))), [len(leaves) for leaves in _groups(features)]
            )
            weights = group[:, None] == group[None, :]
        elif pairs == "all":
            weights = np.ones((count, count), bool)
        else:
            raise ValueError(
                f"pairs={pairs!r} is unknown: use 'group', 'all' or a sequence of index pairs."
            )
        weights = weights & ~np.eye(count, dtype=bool)
    else:
        weights = np.zeros((count, count), bool)
        for i, j in pairs:
            if not (0 <= i < count and 0 <= j < count and i != j):
                raise ValueError(
                    f"pair ({i}, {j}) does not name two different features: "
                    f"indices run from 0 to {count - 1}."
                )
            weights[i, j] = weights[j, i] = True
    if not weights.any():
        raise ValueError(
            f"no pair of features to penalize among {count} feature(s): pass at least two features "
            "in one group, for example {'stage1': (x0, x1)} (features.stage_features makes such "
            "groups of what blocks sow inside), or pairs='all'."
        )
    return weights.astype(np.float32)


def _split(
    leaves: list[Any], samples: int | None, batches: int, debiased: bool
) -> list[Float[Array, "k n p"]]:
    """Check the features and cut each to its `batches` sub-batches of flattened samples."""
    if not leaves:
        raise ValueError("no features: pass a pytree of arrays whose first axis is the sample.")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"features of shapes {shapes} do not share a leading sample axis: "
            "pass features of the same samples, each of shape [n, ...]."
        )
    (size,) = sizes.pop()
    if batches < 1:
        raise ValueError(f"batches={batches} is not positive: use 1 or more sub-batches.")
    n = size // batches if samples is None else samples
    least = 4 if debiased else 2
    if n < least:
        kind = "debiased" if debiased else "biased"
        raise ValueError(
            f"{n} samples are too few for {kind} CKA: it needs at least {least} in each sub-batch."
        )
    if n * batches > size:
        raise ValueError(
            f"samples={n} in batches={batches} needs {n * batches} samples and the batch has "
            f"{size}: lower samples or batches."
        )
    return [
        jnp.reshape(jnp.asarray(leaf)[: n * batches], (batches, n, -1)).astype(
            jnp.promote_types(leaf.dtype, jnp.float32)
        )
        for leaf in leaves
    ]


def _scaled_hsic(
    leaves: list[Any],
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
    parts = _split(leaves, samples, batches, debiased)
    n = parts[0].shape[1]
    # All Grams together from here on: many small operations would cost more than the large ones.
    grams, scales = _normalize(jnp.stack([_gram(x) for x in parts], axis=1), axis_name)
    if kernel == "rbf":
        grams, scales = _rbf(grams), jnp.ones_like(scales)
    stacked = center(grams, debiased).reshape(batches, len(parts), n * n)
    # One matrix product gives all pairs, summed over the sub-batches.
    hsic = jnp.einsum("kia,kja->ij", stacked, stacked, precision=jax.lax.Precision.HIGHEST)
    hsic = hsic / (batches * (n * (n - 3) if debiased else (n - 1) ** 2))
    if axis_name is not None:
        hsic = jax.lax.pmean(hsic, axis_name)
    return hsic, scales


@jax.custom_jvp
def _inner_products(x: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """XX'. Its derivative is one matrix product and not the two that autodiff would make of it."""
    # Full precision: accelerators round the factors of a float32 product to fewer bits by default.
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


@_inner_products.defjvp
def _inner_products_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    (x,), (tangent,) = primals, tangents
    half = jnp.matmul(tangent, x.T, precision=jax.lax.Precision.HIGHEST)
    return _inner_products(x), half + half.T


def _gram(x: Float[Array, "k n p"]) -> Float[Array, "k n n"]:
    """Gram matrices of the features' differences from the first sample.

    HSIC and CKA do not change when a constant is added to a feature, so one is subtracted, for
    accuracy where the mean is large, as a constant to the gradient, which stays exact. The first
    sample serves as well as the mean and costs one pass less over the features.
    """
    x = x - jax.lax.stop_gradient(x[:, :1])
    # One by one: a batched product of tall matrices is slower than its parts on a CPU.
    return jnp.stack([_inner_products(part) for part in x])


def _normalize(
    grams: Float[Array, "k l n n"], axis_name: str | None
) -> tuple[Float[Array, "k l n n"], Float[Array, " l"]]:
    """Grams with mean diagonal 1 for each feature, and the scales taken out of them.

    What dividing by the scale changes is put back by the caller or cancels in the ratio, so the
    scale is a constant to the gradient, which stays exact.
    """
    scale = jnp.mean(_diagonal(grams), axis=(0, 2))
    # The first sample's products are 0, or NaN where a feature holds infinity: 0 times infinity.
    scale = jax.lax.stop_gradient(scale + jnp.sum(grams[..., 0], axis=(0, 2)))
    if axis_name is not None:  # one scale on all devices, or the HSICs could not be averaged
        scale = jax.lax.pmean(scale, axis_name)
    # No variation, or one whose squares the type cannot hold in full. NaN stays NaN.
    info = jnp.finfo(scale.dtype)
    dead = (scale < info.tiny / info.eps) | jnp.isinf(scale)
    scale = jnp.where(dead, 1, scale)
    grams = jnp.where(dead[None, :, None, None], 0, grams / scale[None, :, None, None])
    return grams, scale


def _rbf(grams: Float[Array, "k l n n"]) -> Float[Array, "k l n n"]:
    """RBF Grams from linear ones: d_ij^2 = K_ii + K_jj - 2 K_ij."""
    squares = _diagonal(grams)
    distances = jnp.maximum(squares[..., :, None] + squares[..., None, :] - 2 * grams, 0)
    # Over the whole matrix with its zero diagonal, as Kornblith et al. take it.
    median = jnp.median(distances, axis=(2, 3), keepdims=True)
    median = jnp.where(median > 0, median, 1)  # 0 where half of the distances are
    return jnp.exp(-distances / (2 * RBF_BANDWIDTH**2 * median))


def _diagonal(grams: Float[Array, "k l n n"]) -> Float[Array, "k l n"]:
    return jnp.diagonal(grams, axis1=2, axis2=3)


def center(gram: Float[Array, "k l n n"], debiased: bool) -> Float[Array, "k l n n"]:
    """U-centered Gram (zero diagonal, zero row sums over i != j), or HKH when biased.

    A result that is rounding error only (constant features, or one live sample) becomes exactly 0.
    """
    n = gram.shape[-1]
    if debiased:
        off_diagonal = ~np.eye(n, dtype=bool)[None, None]
        gram = jnp.where(off_diagonal, gram, 0)
        rows = gram.sum(axis=-1, keepdims=True)
        total = rows.sum(axis=-2, keepdims=True)
        centered = gram - (rows + jnp.swapaxes(rows, -1, -2)) / (n - 2)
        centered = jnp.where(off_diagonal, centered + total / ((n - 1) * (n - 2)), 0)
    else:
        rows = gram.mean(axis=-1, keepdims=True)
        centered = gram - rows - jnp.swapaxes(rows, -1, -2) + rows.mean(axis=-2, keepdims=True)
    tolerance = 64 * jnp.finfo(gram.dtype).eps
    size = jnp.sum(jnp.square(gram), axis=(-1, -2), keepdims=True)
    noise = jnp.sum(jnp.square(centered), axis=(-1, -2), keepdims=True) <= tolerance**2 * size
    return jnp.where(noise, 0, centered)
