"""Selecting the k largest of N scores with a traced k: `top_k_mask` against sorting.

  python benchmarks/selection.py

Prints a row per N: milliseconds of `top_k_mask`, and the ratios of two rivals to it. `top_k_mask`
searches the threshold two bits at a time. The rivals read the threshold from all scores, sorted, or
from the largest half, which `jax.lax.top_k` gives with a fixed k. Their counts are exact only
without ties.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from output import print_table

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.sparsity import top_k_mask

SIZES = (300_000, 2_500_000, 25_000_000)


def by_sort(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Mask of the k largest by a whole sort."""
    return scores >= jnp.sort(scores)[scores.size - k]


def by_top_k(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Mask of the k largest, k at most half, by a fixed `top_k`."""
    return scores >= jax.lax.top_k(scores, scores.size // 2)[0][k - 1]


def main() -> None:
    """Print the table."""
    rows = []
    for size in SIZES:
        scores = jax.random.normal(jax.random.key(size), (size,))
        k = jnp.int32(size // 10)
        calls = {}
        for name, select in (("search", top_k_mask), ("sort", by_sort), ("top_k", by_top_k)):
            compiled = jax.jit(select)
            assert int(compiled(scores, k).sum()) >= size // 10
            calls[name] = partial(compiled, scores, k)
        times = interleaved_seconds(calls, repeats=3)
        ratios = [f"{times[name] / times['search']:.1f}" for name in ("sort", "top_k")]
        rows.append([f"{size:,}", f"{1e3 * times['search']:.1f}", *ratios])
    print_table(
        "The k = N / 10 largest of N scores",
        ["N", "search (ms)", "sort / search", "top_k / search"],
        rows,
    )


if __name__ == "__main__":
    main()
