"""The k largest of N scores, with k traced: the primitive that every pruning rule needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


# It searches the threshold bit by bit, on integers in the order of the scores: at most 32 counts of
# N values. A sort takes ten times as long (benchmarks/selection.py).
def top_k_mask(
    scores: Float[Array, "..."],
    k: int | Int[Array, ""],
    where: Bool[Array, "..."] | None = None,
) -> Bool[Array, "..."]:
    """A mask of exactly k scores, the largest.

    Of equal scores those of the lowest index are taken first (0.0 and -0.0 are equal). NaN ranks
    below -inf. Scores of another type than float32 are compared as float32.

    >>> top_k_mask(jnp.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
    [True, False, True, False]

    Args:
      scores: of any shape; ranked as a whole.
      k: how many, traced or not. Below 0 counts as 0, above the number of candidates as all.
      where: bool array of the scores' shape, the candidates; None: all.
    """
    masks = {"": where} if where is not None else None
    return top_k_masks({"": scores}, k, masks)[""]


def top_k_masks(
    scores: Mapping[str, Float[Array, "..."]],
    k: int | Int[Array, ""],
    where: Mapping[str, Bool[Array, "..."]] | None = None,
) -> dict[str, Bool[Array, "..."]]:
    """`top_k_mask` of several layers ranked together: k weights in all, ties in the layers' order.

    >>> masks = top_k_masks({"a": jnp.array([5.0, 1.0]), "b": jnp.array([4.0, 3.0])}, 3)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, False], [True, True])
    """
    ranks = {path: _monotone_image(score) for path, score in scores.items()}
    if where is not None:
        ranks = {path: jnp.where(where[path], rank, 0) for path, rank in ranks.items()}
    sizes = [score.size for score in scores.values()]
    *starts, size = itertools.accumulate(sizes, initial=0)
    start_of = dict(zip(scores, starts, strict=True))
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, size)

    def reaches(path: str, t: UInt32[Array, ""]) -> Bool[Array, "..."]:
        return ranks[path] >= t

    def early(path: str, t: UInt32[Array, ""]) -> Bool[Array, "..."]:
        # The higher t, the fewer indices. With t in the sum XLA computes the indices on the fly;
        # a side of the comparison that is constant in the loop would be stored.
        rank = ranks[path]
        index = start_of[path] + jax.lax.iota(jnp.uint32, rank.size).reshape(rank.shape)
        return (rank == threshold) & (index + t <= size)

    threshold, count = _threshold(partial(_count, reaches, ranks), k, size)
    above = _count(reaches, ranks, threshold + 1)
    # Without ties all at the threshold are chosen, and the second search ends at once.
    missing = jnp.where(count == k, size, k - above)
    last, _ = _threshold(partial(_count, early, ranks), missing, size)
    chosen = {path: (rank > threshold) | early(path, last) for path, rank in ranks.items()}
    if where is None:
        return chosen
    return {path: mask & where[path] for path, mask in chosen.items()}


def _monotone_image(scores: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Unsigned integers >= 1 in the order of the scores, with NaN lowest.

    The bits of positive floats are ordered as they are, and those of negative ones in reverse.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign, magnitude = jnp.uint32(1 << 31), bits & jnp.uint32((1 << 31) - 1)
    image = jnp.where(bits > sign, ~bits, magnitude | sign)  # -0.0, the sign bit alone, is 0.0
    return jnp.where(magnitude > 0x7F800000, jnp.uint32(1), image)


def _count(
    chosen: Callable[[str, UInt32[Array, ""]], Bool[Array, "..."]],
    paths: Iterable[str],
    t: UInt32[Array, ""],
) -> Int[Array, ""]:
    """How many entries of all layers are chosen at t."""
    total = jnp.int32(0)
    for path in paths:
        # Each layer adds a 0 from the last one, so that XLA takes them one after another: it may
        # write out what it sums.
        zero = (total >> 31).astype(jnp.uint32)
        total += jnp.sum(chosen(path, t + zero), dtype=jnp.int32)
    return total


def _threshold(
    at_least: Callable[[UInt32[Array, ""]], Int[Array, ""]], k: Int[Array, ""], size: int
) -> tuple[UInt32[Array, ""], Int[Array, ""]]:
    """(t, at_least(t)) for a t where that count is k or, with ties, the next above k.

    t is built from the highest bit down; a bit is set where k or more values still reach t. The
    search ends at the first t with exactly k values, else at the largest t with k or more.
    """

    def unfinished(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        bit, _, count = state
        return (bit > 0) & (count != k)

    def next_bit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bit, low, count = state
        higher = at_least(low | bit)
        enough = higher >= k
        return bit >> 1, jnp.where(enough, low | bit, low), jnp.where(enough, higher, count)

    start = (jnp.uint32(1 << 31), jnp.uint32(0), jnp.int32(size))
    _, threshold, count = jax.lax.while_loop(unfinished, next_bit, start)
    return threshold, count
