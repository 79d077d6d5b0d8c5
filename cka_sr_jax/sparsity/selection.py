"""The k largest of N scores, with k traced: the primitive that every pruning rule needs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from cka_sr_jax._dtypes import enable_x64

Count = int | Int[Array | np.ndarray, ""]

# Counts of more than this are int64.
LARGEST_INT32 = 2**31 - 1


# It searches the threshold bit by bit, on integers in the order of the scores: at most 32 counts of
# N values. A sort takes ten times as long (benchmarks/selection.py).
def top_k_mask(
    scores: Float[Array, "..."], k: Count, where: Bool[Array, "..."] | None = None
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
    k: Count,
    where: Mapping[str, Bool[Array, "..."]] | None = None,
) -> dict[str, Bool[Array, "..."]]:
    """`top_k_mask` of several layers ranked together: k weights in all, ties in the layers' order.

    >>> masks = top_k_masks({"a": jnp.array([5.0, 1.0]), "b": jnp.array([4.0, 3.0])}, 3)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, False], [True, True])
    """
    ranks = {path: _monotone_image(score) for path, score in scores.items()}
    if where is None:
        return largest_ranks(ranks, k)
    ranks = {path: jnp.where(where[path], rank, 0) for path, rank in ranks.items()}
    return {path: mask & where[path] for path, mask in largest_ranks(ranks, k).items()}


def largest_ranks(
    ranks: Mapping[str, UInt[Array, "..."]], k: Count
) -> dict[str, Bool[Array, "..."]]:
    """Masks of exactly k ranks (uint32), the largest; of equal ones the earlier layer and index."""
    sizes = [rank.size for rank in ranks.values()]
    *starts, size = itertools.accumulate(sizes, initial=0)
    start_of = dict(zip(ranks, starts, strict=True))
    with wide_counts(size):
        dtype = count_dtype(size)
        index_dtype, bits = (
            (jnp.uint32, 32) if dtype == jnp.int32 else (jnp.uint64, size.bit_length())
        )
        k = jnp.clip(jnp.asarray(k).astype(dtype), 0, size)

        def reaches(path: str, t: UInt[Array, ""]) -> Bool[Array, "..."]:
            return ranks[path] >= t

        def early(path: str, t: UInt[Array, ""]) -> Bool[Array, "..."]:
            # The higher t, the fewer indices. With t in the sum XLA computes the indices on the
            # fly; a side of the comparison that is constant in the loop would be stored.
            index = start_of[path] + _indices(ranks[path].shape, index_dtype)
            return (ranks[path] == threshold) & (index + t <= size)

        def count(chosen: Callable[..., Bool[Array, "..."]], t: UInt[Array, ""]) -> Int[Array, ""]:
            return _count(chosen, t, ranks, dtype)

        threshold, reached = _threshold(partial(count, reaches), k, size, jnp.uint32, 32)
        above = count(reaches, threshold + 1)
        # Without ties all at the threshold are chosen, and the second search ends at once.
        missing = jnp.where(reached == k, size, k - above)
        last, _ = _threshold(partial(count, early), missing, size, index_dtype, bits)
        return {path: (rank > threshold) | early(path, last) for path, rank in ranks.items()}


def count_kept(mask: Bool[Array, "..."]) -> Int[Array, ""]:
    """How many entries are True, exactly: int32, and int64 for arrays that need it.

    Use it and what follows from it inside `wide_counts(mask.size)`.
    """
    return jnp.sum(mask, dtype=count_dtype(mask.size))


def count_dtype(size: int) -> Any:
    """The integer type that counts this many weights."""
    return jnp.int32 if size <= LARGEST_INT32 else jnp.int64


def wide_counts(size: int) -> contextlib.AbstractContextManager[Any]:
    """Where counts of up to `size` weights are computed: with 64-bit types if they need them."""
    return contextlib.nullcontext() if size <= LARGEST_INT32 else enable_x64(True)


def _monotone_image(scores: Float[Array, "..."]) -> UInt[Array, "..."]:
    """Unsigned integers >= 1 in the order of the scores, with NaN lowest.

    The bits of positive floats are ordered as they are, and those of negative ones in reverse.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign, magnitude = jnp.uint32(1 << 31), bits & jnp.uint32((1 << 31) - 1)
    image = jnp.where(bits > sign, ~bits, magnitude | sign)  # -0.0, the sign bit alone, is 0.0
    return jnp.where(magnitude > 0x7F800000, jnp.uint32(1), image)


def _indices(shape: tuple[int, ...], dtype: Any) -> UInt[Array, "..."]:
    """The index of each entry in the flat array; a reshape of a sharded array might gather it."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axes = [
        jax.lax.broadcasted_iota(dtype, shape, axis) * jnp.asarray(stride, dtype)
        for axis, stride in enumerate(strides)
    ]
    return sum(axes, jnp.zeros((), dtype))


def _count(
    chosen: Callable[[str, UInt[Array, ""]], Bool[Array, "..."]],
    t: UInt[Array, ""],
    paths: Iterable[str],
    dtype: Any,
) -> Int[Array, ""]:
    """How many entries of all layers are chosen at t."""
    total = jnp.zeros((), dtype)
    for path in paths:
        # Each layer adds a 0 from the last one, so that XLA takes them one after another: it may
        # write out what it sums.
        zero = (total < 0).astype(t.dtype)
        total += jnp.sum(chosen(path, t + zero), dtype=dtype)
    return total


def _threshold(
    at_least: Callable[..., Int[Array, ""]], k: Int[Array, ""], size: int, dtype: Any, bits: int
) -> tuple[UInt[Array, ""], Int[Array, ""]]:
    """(t, at_least(t)) for a t where that count is k or, with ties, the next above k.

    t is built from the highest bit down; a bit is set where k or more values still reach t. The
    search ends at the first t with exactly k values, else at the largest t with k or more.
    """

    def unfinished(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        bit, _, count = state
        return (bit > 0) & (count != k)

    def next_bit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bit, low, count = state
        higher = at_least(t=low | bit)
        enough = higher >= k
        return bit >> 1, jnp.where(enough, low | bit, low), jnp.where(enough, higher, count)

    start = (jnp.asarray(1 << (bits - 1), dtype), jnp.zeros((), dtype), jnp.asarray(size, k.dtype))
    _, threshold, count = jax.lax.while_loop(unfinished, next_bit, start)
    return threshold, count
