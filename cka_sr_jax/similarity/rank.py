"""How many dimensions the features of a layer have: diagnostics beside CKA.

The rank of features can only fall from layer to layer; "Rank Diminishing in Deep Neural Networks"
(Feng et al. 2022, arXiv 2206.06072) measures it in four ways, which are here as in its code. All
but `classification_dimension` are pure and work under `jit`.

`effective_rank` (Roy & Vetterli 2007) is smooth where those count, and cheap: reports show it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cka_sr_jax._dtypes import float32_or_wider

LASSO_SWEEPS, LASSO_TOLERANCE = 10_000, 2.0**-23


class IndependenceDeficit(NamedTuple):
    """How each class's logit follows from those of the others.

    Attributes:
      weights: [c, c]; row i writes logit i as a sum of the others, with 0 at place i.
      unexplained: [c]; mean square of what row i leaves, as a share of logit i's mean square. Near
        0, the network does without a direction of its own for that class.
    """

    weights: Float[Array, "c c"]
    unexplained: Float[Array, " c"]


def effective_rank(features: Any) -> Any:
    """exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j, s the singular values of centered features.

    It lies between 1 and the smaller of n - 1 and the width d, which it reaches when all directions
    vary alike; 0 for features that are constant over the samples, NaN for infinite ones.

    >>> x = jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> print(effective_rank(x).round(3), effective_rank(x * jnp.array([1.0, 0.0])).round(3))
    2.0 1.0

    Args:
      features: pytree of arrays [n, ...]; axes after the first are flattened. NumPy arrays are
        computed with by NumPy, which compiles nothing.

    Returns:
      A pytree of scalars.
    """

    def rank(feature: Any) -> Any:
        xp: Any = np if isinstance(feature, np.ndarray) else jnp
        if xp is np and not np.isfinite(feature).all():  # NumPy would raise an error
            return np.float32(np.nan)
        values = _singular_values(feature, xp)
        # A constant leaves rounding of its mean. `constant` is False for NaN, which stays NaN.
        eps = jnp.finfo(float32_or_wider(feature.dtype)).eps
        constant = values.max() <= 64 * eps * feature.size**0.5 * xp.abs(feature).max()
        share = values / xp.where(constant, 1, values.sum())
        entropy = -xp.sum(share * xp.log(xp.where(share > 0, share, 1)))
        return xp.where(constant, 0, xp.exp(entropy))

    return jax.tree.map(rank, features)


def perturbed_pca_rank(
    function: Callable[[Any], Any],
    x: Float[Array, "..."],
    key: Array,
    *,
    copies: int = 5000,
    scale: float = 1e-3,
) -> Any:
    """Rank of the features near one input: how many directions small changes of it can reach.

    The features of `copies` inputs x + scale N(0, I) are centered and flattened to F [copies, d].
    The rank counts the eigenvalues v of F'F / copies with v >= max(v) d eps, eps = 2^-23.

    >>> def two_layers(x):  # of rank 2 and, after it, 1
    ...     first = x @ jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    ...     return first, first.sum(-1, keepdims=True)
    >>> ranks = perturbed_pca_rank(two_layers, jnp.ones(2), jax.random.key(0))
    >>> [int(rank) for rank in ranks]
    [2, 1]

    Args:
      function: features of a batch of inputs: [n, ...] to a pytree of arrays [n, ...].
      x: one input, without the batch's axis.
      key: of the noise.
      copies: more than the rank that is to be found; the paper takes 5,000 and the mean over 100
        images.

    Returns:
      A pytree of int32 scalars; -1 for features that are not finite.
    """
    noise = scale * jax.random.normal(key, (copies, *x.shape), x.dtype)

    def rank(feature: Array) -> Array:
        # Of the singular values, since an eigenvalue of F'F itself is rounded at max(v) eps.
        return _count(_singular_values(feature) ** 2, feature.size // copies)

    return jax.tree.map(rank, function(x[None] + noise))


def partial_rank(function: Callable[[Any], Any], x: Float[Array, "..."], patch: Any = ...) -> Any:
    """Rank of each feature's Jacobian with respect to a part of one input, the rest held fixed.

    With J [d, p] the Jacobian of the flattened feature, it counts the eigenvalues v of J'J with
    v >= max(v) p eps, eps = 2^-23. The rank by the whole input is at least this.

    >>> def features(x):
    ...     return x[:2], x[:1] * x[1:2]
    >>> ranks = partial_rank(features, jnp.arange(1.0, 5.0), np.s_[1:3])  # of x[1] and x[2]
    >>> [int(rank) for rank in ranks]
    [1, 1]

    Args:
      function: features of one input, without the batch's axis: a pytree of arrays.
      x: one input.
      patch: index of the part; for an image [h, w, c] `np.s_[8:24, 8:24]`, 16 x 16 as in the paper,
        which takes the mean over 10 images. By default all of x.

    Returns:
      A pytree of int32 scalars; -1 for Jacobians that are not finite.
    """
    part = x[patch]

    def of_part(values: Array) -> Any:
        return function(x.at[patch].set(values.reshape(part.shape)))

    jacobians = jax.jacfwd(of_part)(part.reshape(-1))

    def rank(jacobian: Array) -> Array:
        values = jnp.linalg.svd(jacobian.reshape(-1, part.size), compute_uv=False)
        return _count(values**2, part.size)

    return jax.tree.map(rank, jacobians)


def classification_dimension(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    head: Callable[[Any], Any],
    *,
    share: float = 0.95,
) -> int:
    """How many principal directions of the last features the classes need.

    The least k with accuracy(head(V_k V_k' f)) >= share accuracy(head(f)), where V_k holds the
    first k eigenvectors of the features' covariance. The projection itself is not centered, as in
    the paper's code. Published: ResNet-18 149 of 512, ResNet-50 131 of 2048 (ImageNet).

    >>> features = jax.random.normal(jax.random.key(0), (500, 8)) * jnp.arange(8.0, 0.0, -1.0)
    >>> labels = jnp.argmax(features[:, :2], axis=1)
    >>> classification_dimension(features, labels, lambda f: f[:, :2])
    2

    Args:
      features: the input of the last layer.
      labels: the true classes.
      head: `features -> logits [n, classes]`, such as `lambda f: f @ kernel + bias`.
      share: of the full accuracy, in (0, 1].

    Raises:
      ValueError: shapes that do not fit; a share outside (0, 1]; too few examples to span what the
        head looks at.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features of shape {features.shape} and labels of shape {labels.shape} do not fit: "
            "pass [n, d], flattened or pooled as the head takes them, and [n]."
        )
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is not in (0, 1]: the paper takes 0.95.")
    _, _, directions = jnp.linalg.svd(
        features - features.mean(axis=0, keepdims=True), full_matrices=False
    )

    @jax.jit
    def correct(kept: Array) -> Array:
        projected = ((features @ directions.T) * kept[None]) @ directions
        return jnp.sum(jnp.argmax(head(projected), axis=-1) == labels)

    least = share * int(jnp.sum(jnp.argmax(head(features), axis=-1) == labels))
    count = len(directions)
    for k in range(count + 1):
        if int(correct((jnp.arange(count) < k).astype(features.dtype))) >= least:
            return k
    raise ValueError(
        f"all {count} principal directions of {len(features)} features give less than "
        f"share={share} of the accuracy: pass more examples than the features are wide."
    )


def independence_deficit(
    logits: Float[Array, "n c"], *, strength: float = 20.0
) -> IndependenceDeficit:
    """Whether the logit of each class can be written by those of few others.

      w_i = argmin_w mean_n (F_ni - sum_(j != i) F_nj w_j)^2 + strength |w|_1

    >>> a, b = 10 * jax.random.normal(jax.random.key(0), (2, 1000))
    >>> found = independence_deficit(jnp.stack([a, b, a + b], axis=1), strength=0.1)
    >>> print(found.unexplained.max() < 0.01, found.weights[2].round(1))
    True [1. 1. 0.]

    Args:
      logits: of a data set, in the units in which `strength` counts; the paper takes 20 for
        ImageNet's.

    Raises:
      ValueError: fewer than two classes; a strength that is negative.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits of shape {logits.shape}: pass [n, c] of at least two classes.")
    if strength < 0:
        raise ValueError(f"strength={strength} is negative: the paper takes 20.")
    count = logits.shape[1]
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    gram = product(logits.T, logits) / len(logits)
    power = jnp.diagonal(gram)

    def fit(i: Array) -> tuple[Array, Array]:
        def visit(j: Array, w: Array) -> Array:
            rest = gram[j, i] - product(gram[j], w) + power[j] * w[j]
            shrunk = jnp.sign(rest) * jnp.maximum(jnp.abs(rest) - strength / 2, 0)
            usable = (power[j] > 0) & (j != i)
            return w.at[j].set(jnp.where(usable, shrunk / jnp.where(usable, power[j], 1), 0))

        def sweep(carry: Any) -> Any:
            w, _, sweeps = carry
            new = jax.lax.fori_loop(0, count, visit, w)
            change = jnp.max(jnp.abs(new - w)) / jnp.maximum(jnp.max(jnp.abs(new)), 1)
            return new, change, sweeps + 1

        def goes_on(carry: Any) -> Array:
            return (carry[1] > LASSO_TOLERANCE) & (carry[2] < LASSO_SWEEPS)

        start = jnp.zeros(count, gram.dtype)
        w, _, _ = jax.lax.while_loop(goes_on, sweep, (start, jnp.asarray(jnp.inf), 0))
        left = product(product(w, gram), w) - 2 * product(w, gram[i]) + power[i]
        return w, jnp.maximum(left, 0) / jnp.where(power[i] > 0, power[i], 1)

    return IndependenceDeficit(*jax.lax.map(fit, jnp.arange(count)))


def _singular_values(feature: Any, xp: Any = jnp) -> Any:
    """Those of the flattened feature [n, d], centered over the samples."""
    flat = feature.reshape(len(feature), -1)
    flat = flat.astype(float32_or_wider(flat.dtype) if xp is jnp else np.float64)
    flat = flat - flat.mean(axis=0, keepdims=True)
    if xp is jnp:
        return jnp.linalg.svd(flat, compute_uv=False)
    # Much faster, and in float64 exact beyond what features in float32 can show.
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    return np.sqrt(np.linalg.eigvalsh(gram).clip(0))


def _count(eigenvalues: Array, size: int) -> Array:
    """How many are above rounding, for a matrix [size, size]; none, where all are 0."""
    largest = eigenvalues.max(initial=0)
    threshold = largest * size * np.finfo(np.float32).eps
    count = jnp.sum((eigenvalues >= threshold) & (eigenvalues > 0)).astype(jnp.int32)
    return jnp.where(jnp.all(jnp.isfinite(eigenvalues)), count, jnp.int32(-1))
