"""From features to scaled and centered Gram matrices.

A feature is an array [n, ...] whose first axis is the sample; the other axes are flattened, never
pooled. From here on a feature is its Gram matrix [n, n], so features of any width compare.

All is computed in float32, or in the features' own type where that is wider. Shapes: k
sub-batches, l features, n samples, p entries of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider

Kernel = Literal["linear", "rbf"]

# The RBF kernel's bandwidth as a share of the median distance between samples (Kornblith et al.).
RBF_BANDWIDTH = 0.5


def feature_groups(features: Any) -> list[list[Any]]:
    """The features of each group: of each top-level key of a mapping, else of the whole tree."""
    parts = features.values() if isinstance(features, Mapping) else [features]
    return [jax.tree.leaves(part) for part in parts]


def feature_leaves(features: Any) -> list[Any]:
    """The features in order, group by group."""
    return [leaf for group in feature_groups(features) for leaf in group]


def split_samples(
    leaves: list[Any], samples: int | None, batches: int, debiased: bool
) -> list[Float[Array, "k n p"]]:
    """Check the features, and cut each into `batches` sub-batches of `samples` flattened samples.

    Raises:
      ValueError: as `cka_matrix`.
    """
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
        jnp.reshape(leaf, (batches, n, -1)).astype(float32_or_wider(leaf.dtype))
        for leaf in first_samples(leaves, n * batches)
    ]


def first_samples(leaves: Sequence[Any], count: int) -> list[Array]:
    """The first samples of each feature [n, ...], also where n is sharded explicitly.

    >>> [feature.shape for feature in first_samples([jnp.ones((8, 3)), jnp.ones((8, 2, 2))], 4)]
    [(4, 3), (4, 2, 2)]
    """

    def cut(leaves: list[Any]) -> list[Array]:
        return [leaf[:count] for leaf in leaves]

    leaves = [jnp.asarray(leaf) for leaf in leaves]
    if any(_has_explicit_sharding(leaf) for leaf in leaves):
        # Every device gets the samples that it needs for whole Grams, as XLA does by itself else.
        cut = jax.sharding.auto_axes(cut, out_sharding=[PartitionSpec()] * len(leaves))
    return cut(leaves)


def _has_explicit_sharding(leaf: Array) -> bool:
    return AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def scaled_grams(
    parts: list[Float[Array, "k n _"]], axis_name: str | None
) -> tuple[Float[Array, "k l n n"], Float[Array, " l"]]:
    """The features' linear Grams divided by their scales, and these scales.

    A feature's scale is the mean diagonal of its Grams, over the devices of `axis_name` too.
    Dividing by it keeps products of Grams within the range of the type. The caller multiplies it
    back, or it cancels in a ratio, so it is a constant to the gradient, which stays exact. A Gram
    is 0 where the feature is constant, or where its squares overflow or underflow the type.
    """
    # All Grams together from here on: many small operations would cost more than the large ones.
    return _normalize(jnp.stack([_gram(x) for x in parts], axis=1), axis_name)


def centered_grams(
    features: Any, samples: int | None = None, *, debiased: bool = False
) -> Float[Array, "l n n"]:
    """HKH / scale, H = I - 11'/n, for each feature's linear Gram K; 0 where it is constant.

    Raises:
      ValueError: fewer than 2 samples (4 where the result is debiased later); more samples than
        the features have; features of different n.
    """
    parts = split_samples(feature_leaves(features), samples, batches=1, debiased=debiased)
    grams, _ = scaled_grams(parts, axis_name=None)
    return center(grams, debiased=False)[0]


def rbf_grams(grams: Float[Array, "k l n n"]) -> Float[Array, "k l n n"]:
    """RBF Grams exp(-d_ij^2 / (2 s^2)) from linear ones, as d_ij^2 = K_ii + K_jj - 2 K_ij.

    The bandwidth s is half the median distance between the samples.
    """
    squares = _diagonal(grams)
    distances = jnp.maximum(squares[..., :, None] + squares[..., None, :] - 2 * grams, 0)
    # Over the whole matrix with its zero diagonal, as Kornblith et al. take it.
    median = jnp.median(distances, axis=(2, 3), keepdims=True)
    median = jnp.where(median > 0, median, 1)  # 0 where half of the distances are
    return jnp.exp(-distances / (2 * RBF_BANDWIDTH**2 * median))


def center(grams: Float[Array, "k l n n"], debiased: bool) -> Float[Array, "k l n n"]:
    """U-centered Grams (zero diagonal, zero row sums over i != j), or HKH when biased.

    A result that consists of rounding error (of constant features, or of a single sample that is
    not 0) becomes exactly 0.
    """
    n = grams.shape[-1]
    if debiased:
        off_diagonal = ~np.eye(n, dtype=bool)[None, None]
        grams = jnp.where(off_diagonal, grams, 0)
        rows = grams.sum(axis=-1, keepdims=True)
        total = rows.sum(axis=-2, keepdims=True)
        centered = grams - (rows + jnp.swapaxes(rows, -1, -2)) / (n - 2)
        centered = jnp.where(off_diagonal, centered + total / ((n - 1) * (n - 2)), 0)
    else:
        rows = grams.mean(axis=-1, keepdims=True)
        centered = grams - rows - jnp.swapaxes(rows, -1, -2) + rows.mean(axis=-2, keepdims=True)
    tolerance = 64 * jnp.finfo(grams.dtype).eps
    size = jnp.sum(jnp.square(grams), axis=(-1, -2), keepdims=True)
    noise = jnp.sum(jnp.square(centered), axis=(-1, -2), keepdims=True) <= tolerance**2 * size
    return jnp.where(noise, 0, centered)


@jax.custom_jvp
def _inner_products(x: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """XX'. Its derivative is one matrix product, where autodiff would make two."""
    # Full precision: accelerators round the factors of a float32 product to fewer bits by default.
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


@_inner_products.defjvp
def _inner_products_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    (x,), (tangent,) = primals, tangents
    half = jnp.matmul(tangent, x.T, precision=jax.lax.Precision.HIGHEST)
    return _inner_products(x), half + half.T


@jax.checkpoint  # the differences are made again for the gradient: kept, they would be a copy of x
def _gram(x: Float[Array, "k n p"]) -> Float[Array, "k n n"]:
    """Gram matrices of the features' differences from the first sample.

    HSIC and CKA do not change when a constant is added to a feature. Subtracting one keeps them
    accurate where the mean is large. It is a constant to the gradient too, which stays exact. The
    first sample serves as well as the mean and saves one pass over the features.
    """
    x = x - jax.lax.stop_gradient(x[:, :1])
    # One by one: a batched product of tall matrices is slower than its parts on a CPU.
    return jnp.stack([_inner_products(part) for part in x])


def _normalize(
    grams: Float[Array, "k l n n"], axis_name: str | None
) -> tuple[Float[Array, "k l n n"], Float[Array, " l"]]:
    """Grams with mean diagonal 1 for each feature, and the scales that they were divided by."""
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


def _diagonal(grams: Float[Array, "k l n n"]) -> Float[Array, "k l n"]:
    return jnp.diagonal(grams, axis1=2, axis2=3)
