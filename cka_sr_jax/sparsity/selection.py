"""The k largest of N scores, with k traced: the primitive that every pruning rule needs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt

from cka_sr_jax._dtypes import enable_x64

Count = int | np.integer | Integer[Array | np.ndarray, ""]

# Counts of more than this are int64.
LARGEST_INT32 = 2**31 - 1


# It searches the threshold two bits at a time, on integers in the order of the scores: three counts
# in one pass over the N values, at most 16 passes, and as many again to break ties. A sort takes
# some fifty times as long (benchmarks/selection.py).
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

    Raises:
      TypeError: k is no whole number.
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
        index_dtype = jnp.uint32 if dtype == jnp.int32 else jnp.uint64
        k = _clipped(k, size, dtype)

        def reaches(path: str, at: _Place) -> Bool[Array, "..."]:
            rank = ranks[path]
            # The higher `late`, the fewer indices. With it in the sum XLA computes the indices on
            # the fly; a side of the comparison that is constant in the loop would be stored.
            index = start_of[path] + _indices(rank.shape, index_dtype)
            return (rank > at.rank) | ((rank == at.rank) & (index + at.late < size))

        def counts(places: Sequence[_Place]) -> list[Int[Array, ""]]:
            totals = [jnp.zeros((), dtype)] * len(places)
            for path in ranks:
                # Each layer adds a 0 from the last one, so that XLA takes them one after another.
                zero = (totals[0] < 0).astype(jnp.uint32)
                chosen = [reaches(path, at._replace(rank=at.rank + zero)) for at in places]
                found = count_together(*chosen)
                totals = [a + b.astype(dtype) for a, b in zip(totals, found, strict=True)]
            return totals

        found = _search(counts, k, size, index_dtype)
        return {path: reaches(path, found) for path in ranks}


def count_kept(mask: Bool[Array, "..."]) -> Int[Array, ""]:
    """How many entries are True, exactly: int32, and int64 for arrays that need it.

    Use it and what follows from it inside `wide_counts(mask.size)`.
    """
    return jnp.sum(mask, dtype=count_dtype(mask.size))


def count_together(*masks: Bool[Array, "..."]) -> tuple[Int[Array, ""], ...]:
    """`count_kept` of two or more masks of one shape, in one pass.

    On CPUs several times as fast as a sum of each: XLA writes out the operand of a lone sum, but
    not those of several in one reduction.
    """
    dtype = count_dtype(masks[0].size)
    zeros = (np.zeros((), dtype),) * len(masks)
    numbers = tuple(mask.astype(dtype) for mask in masks)

    def add(one: Sequence[Array], other: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(a + b for a, b in zip(one, other, strict=True))

    return tuple(jax.lax.reduce(numbers, zeros, add, tuple(range(masks[0].ndim))))


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


def _clipped(k: Any, size: int, dtype: Any) -> Int[Array, ""]:
    """k in [0, size], clipped in its own type: cast first, a large one would be another number."""
    if isinstance(k, int):
        return jnp.asarray(min(max(k, 0), size), dtype)
    if isinstance(k, float) or jnp.issubdtype(k.dtype, jnp.inexact):
        raise TypeError(f"k={k} is not a whole number of scores: round it first.")
    if not isinstance(k, jax.Array):
        return jnp.asarray(np.clip(k, 0, size), dtype)
    if jnp.issubdtype(k.dtype, jnp.integer):
        most = min(size, jnp.iinfo(k.dtype).max)
        return jnp.clip(k, jnp.zeros_like(k), jnp.asarray(most, k.dtype)).astype(dtype)
    return jnp.clip(k.astype(dtype), 0, size)


class _Place(NamedTuple):
    """A cut in the order of entries, by rank and then by index.

    It takes every entry of a higher rank, and of equal rank those with at least `late` entries
    after them.
    """

    rank: UInt[Array, ""]
    late: UInt[Array, ""]


def _search(
    counts: Callable[[Sequence[_Place]], Sequence[Int[Array, ""]]],
    k: Int[Array, ""],
    size: int,
    index_dtype: Any,
) -> _Place:
    """A place that takes exactly k entries; it exists, since the order has no ties.

    It is built from the highest bits down, two at a time, with the three candidates counted in one
    pass, until the count is k.
    """
    late_bits = size.bit_length() + size.bit_length() % 2

    def unfinished(state: tuple[Array, _Place, Array]) -> Bool[Array, ""]:
        bit, _, counted = state
        return (bit > 0) & (counted != k)

    def next_bits(state: tuple[Array, _Place, Array]) -> tuple[Array, _Place, Array]:
        bit, at, counted = state
        bit -= 2
        in_rank = bit >= late_bits

        def place(digit: int) -> _Place:
            rank = jnp.where(in_rank, jnp.uint32(digit) << (bit - late_bits).astype(jnp.uint32), 0)
            late = jnp.where(in_rank, 0, jnp.asarray(digit, index_dtype) << bit.astype(index_dtype))
            return _Place(at.rank | rank, jnp.minimum(at.late | late, size))

        places = [place(digit) for digit in (1, 2, 3)]
        for higher, count in zip(places, counts(places), strict=True):
            enough = count >= k
            at = jax.tree.map(lambda new, old: jnp.where(enough, new, old), higher, at)  # noqa: B023
            counted = jnp.where(enough, count, counted)
        return bit, at, counted

    first = _Place(jnp.zeros((), jnp.uint32), jnp.zeros((), index_dtype))  # it takes all
    start = (jnp.asarray(32 + late_bits, jnp.int32), first, jnp.asarray(size, k.dtype))
    return jax.lax.while_loop(unfinished, next_bits, start)[1]
