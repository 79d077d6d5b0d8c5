"""Tokens of a vision transformer dropped while it runs: DynamicViT, and its ranking with CKA.

DynamicViT (Rao et al. 2021, arXiv 2106.02034; from memory) scores the patches between blocks. In
training a random decision per patch keeps or drops it; dropped ones stay in the arrays, and
attention leaves them out. In inference a fixed number of patches with the highest scores goes on,
and the others are really gone. `ViT(keep_rates=...)` puts these functions together.

The CKA-SR paper (arXiv 2307.07389, appendix, equation 13) ranks with

    score'_i = score_i - sum_{j != i} CKA(X_i, X_j)

in place of the score. It gives no code, and does not say what the samples of a token's X_i are:
here they are the channels (`cka_with_other_tokens`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cka_sr_jax._dtypes import float32_or_wider

LARGEST_GAP = 10.0  # of attention scores, beyond which a dropped token's gradient grows no more


def cka_with_other_tokens(
    tokens: Float[Array, "b t d"], kept: Float[Array, "b t"] | None = None
) -> Float[Array, "b t"]:
    """sum_{j != i} CKA(X_i, X_j), linear, for each token i over the other kept tokens j.

    The d channels of one image's tokens are the samples, and each token is one feature. Linear CKA
    is then the square of the correlation of the two tokens over their channels:

      CKA(X_i, X_j) = <x_i - mean(x_i), x_j - mean(x_j)>^2 / (||...||^2 ||...||^2).

    So an image's sums depend on no other image. A constant token has CKA 0 with all others.

      >>> tokens = jnp.array([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, -2.0, 1.0]]])
      >>> print(cka_with_other_tokens(tokens).round(3))
      [[1. 1. 0.]]

    Args:
      tokens: without the class token.
      kept: 1 for tokens that are there, 0 for those that are dropped; None: all are.
    """
    x = tokens.astype(float32_or_wider(tokens.dtype))
    x = x - x.mean(-1, keepdims=True)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    x = x / jnp.where(norm > 0, norm, 1)
    others = jnp.einsum("bid,bjd->bij", x, x) ** 2
    others = others * (1 - jnp.eye(tokens.shape[1], dtype=others.dtype))[None]
    if kept is None:
        return others.sum(-1)
    return jnp.einsum("bij,bj->bi", others, kept.astype(others.dtype))


def sampled_keep(
    log_probabilities: Float[Array, "b t 2"], key: Key[Array, ""]
) -> Float[Array, "b t"]:
    """A random 0 or 1 for each token, with the gradient of its relaxation (straight through).

    With Gumbel noise g and p = softmax(log_probabilities + g), the value is 1 where the first entry
    of p, "keep", is the larger one, and its gradient is that of this entry (Jang et al. 2017, arXiv
    1611.01144).
    """
    noise = jax.random.gumbel(key, log_probabilities.shape, log_probabilities.dtype)
    soft = jax.nn.softmax(log_probabilities + noise)[..., 0]
    hard = (soft >= 0.5).astype(soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))  # the bracket is exactly 0


def attention_among_kept(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b t h d"],
    value: Float[Array, "b t h d"],
    kept: Float[Array, "b t"],
) -> Float[Array, "b q h d"]:
    """Attention that gives dropped tokens no weight but to themselves (DynamicViT).

      weight_ij = exp(s_ij) G_ij / sum_k exp(s_ik) G_ik,   s = query key' / sqrt(d),
      G_ij = 1 if i = j, else kept_j.

    So a kept token attends to what it would find if the others were gone, and the gradient reaches
    `kept`. Queries and keys are of the same tokens. The gradient of a dropped token grows as its
    score exceeds the largest that counts, up to a gap of 10, so that one token cannot ruin a step.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    scores = scores.astype(float32_or_wider(scores.dtype)) / query.shape[-1] ** 0.5
    itself = jnp.eye(scores.shape[-1], dtype=scores.dtype)[None, None]
    gate = kept.astype(scores.dtype)[:, None, None, :] * (1 - itself) + itself
    top = jnp.max(jnp.where(gate > 0, scores, -jnp.inf), axis=-1, keepdims=True)
    weights = jnp.exp(jnp.minimum(scores - jax.lax.stop_gradient(top), LARGEST_GAP)) * gate
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def kept_count(rate: float, tokens: int) -> int:
    """How many of that many tokens are kept at this rate, rounded down, and at least 1."""
    return max(1, int(rate * tokens + 1e-9))


def top_tokens(
    scores: Float[Array, "b t"], count: int, kept: Float[Array, "b t"] | None = None
) -> Int[Array, "b count"]:
    """The places of the `count` highest scores of each image, in the order of the tokens.

    Of equal scores the first counts. Dropped tokens (kept = 0) come after all others.

      >>> print(top_tokens(jnp.array([[0.3, 0.9, 0.5]]), 2))
      [[1 2]]
    """
    if kept is not None:
        scores = jnp.where(kept > 0, scores, -jnp.inf)
    _, places = jax.lax.top_k(scores, count)
    return jnp.sort(places, axis=-1)


def gather_tokens(
    tokens: Float[Array, "b t d"], places: Int[Array, "b count"]
) -> Float[Array, "b count d"]:
    """The tokens at these places, the others being gone."""
    return jnp.take_along_axis(tokens, places[..., None], axis=1)


def keep_rate_loss(kept: Float[Array, "b t"], rate: float) -> Float[Array, ""]:
    """The mean over images of (share of kept tokens - rate)^2 (DynamicViT).

    >>> print(keep_rate_loss(jnp.array([[1.0, 0.0], [1.0, 1.0]]), 0.5))
    0.125
    """
    return jnp.mean((kept.mean(-1) - rate) ** 2)
