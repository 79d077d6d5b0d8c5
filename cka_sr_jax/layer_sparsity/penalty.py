"""The layer-sparsity penalty: the norm of each layer's negative part.

Source: Hebiri and Lederer, "Layer Sparsity in Neural Networks" (arXiv 2006.15604). Their text was
not read; the form of the regularizer is recalled: sum_j r_j ||W^j||_{2,-}, norms without squares,
over all weight matrices but the first and the last. The part of the biases and the scale-invariant
form are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax.layer_sparsity.chain import Affine, Chain, candidate_layers, check_chain


def negative_norm(group: Any) -> Float[Array, ""]:
    """||min(w, 0)||_F over all entries of an array, or of all arrays of a pytree (an `Affine`).

    It is a group-lasso norm of the whole negative part. As it has no square, its proximal step sets
    the whole part to 0 at once. Without a negative entry, value and gradient are 0.

      >>> float(negative_norm(jnp.array([-3.0, -4.0, 5.0])))
      5.0
    """
    # `w >= 0` and not `w < 0`, so that NaN stays NaN.
    return safe_norm(jax.tree.map(lambda w: jnp.where(w >= 0, 0, w), group))


def safe_norm(group: Any) -> Float[Array, ""]:
    """||group||_F in float32 or wider, with gradient 0 at 0, and no over- or underflow."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(group)]
    leaves = [leaf.astype(float32_or_wider(leaf.dtype)) for leaf in leaves]
    # The norm does not depend on the scale it is computed at, so no gradient is lost here.
    scale = jax.lax.stop_gradient(
        jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in leaves]))
    )
    zero = scale == 0
    scale = jnp.where(zero, 1, scale)
    squares = sum((jnp.sum((leaf / scale) ** 2) for leaf in leaves), start=jnp.zeros(()))
    # The inner `where` keeps the square root's infinite slope at 0 out of the gradient.
    return jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, squares)))


def layer_penalty(
    chain: Chain,
    weights: Sequence[float] | None = None,
    *,
    nonnegative_input: bool = False,
    scale_invariant: bool = False,
) -> Float[Array, ""]:
    """sum_j r_j ||neg(W_j, b_j)||_F over the layers j that may become inactive.

    A hidden layer relu(h @ W + b) of an input h >= 0 is linear where W >= 0 and b >= 0, and then
    merges with the next one (`merge_layers`). So the sum runs over `candidate_layers(chain)`: all
    hidden layers but the first, which is applied to the signed input. With `nonnegative_input` the
    first counts as well. The output layer needs no condition. A bias is in its layer's group.

    The plain form has a loophole. As relu(c h) = c relu(h), W_j can shrink while W_{j+1} grows, and
    the function stays. Use it with weight decay, or use `scale_invariant`, whose groups are

      ( neg(W_j) / ||W_j||_F,  neg(b_j) / (sqrt(out_j) prod_{i <= j} ||W_i||_F / sqrt(out_i)) ).

    Rescaling layers against each other by positive factors does not change these, since b_j scales
    with all layers up to j. (The product is the size of the layer's values for inputs of unit
    variance.)

      >>> one = Affine(jnp.array([[1.0]]), jnp.zeros(1))
      >>> middle = Affine(jnp.array([[-3.0]]), jnp.array([-4.0]))
      >>> float(layer_penalty((one, middle, one)))
      5.0

    Args:
      chain: layers of dense or of convolution kernels.
      weights: r_j, one for each layer of `candidate_layers(chain, nonnegative_input)`, in that
        order; None: all 1.
      nonnegative_input: no input of the chain is negative (pixels in [0, 1]).
      scale_invariant: the groups above in place of (neg(W_j), neg(b_j)).

    Returns:
      A scalar in the units of the weights; without units if `scale_invariant`.

    Raises:
      ValueError: as `check_chain`; another number of weights.
    """
    check_chain(chain)
    candidates = candidate_layers(chain, nonnegative_input)
    if weights is None:
        weights = [1.0] * len(candidates)
    single = not isinstance(weights, Sequence) and jnp.ndim(weights) != 1
    if single or len(weights) != len(candidates):
        count = f"weights={weights}" if single else f"{len(weights)} weights"
        raise ValueError(
            f"{count} for {len(candidates)} penalized layers: pass one weight for each of the "
            f"layers {list(candidates)} of the chain, or multiply the penalty by one strength."
        )
    groups = _normalized(chain) if scale_invariant else list(chain)
    terms = [r * negative_norm(groups[j]) for r, j in zip(weights, candidates, strict=True)]
    return sum(terms, start=jnp.zeros(()))


def _normalized(chain: Chain) -> list[Affine]:
    """The layers with kernel and bias divided by the factors that a rescaling would multiply in."""
    groups = []
    size: Float[Array, ""] = jnp.ones(())
    for kernel, bias in chain:
        width = kernel.shape[-1] ** 0.5
        norm = _nonzero(safe_norm(kernel))
        size = _nonzero(size * norm / width)
        groups.append(Affine(kernel / norm, bias / (width * size)))
    return groups


def _nonzero(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(x == 0, 1, x)
