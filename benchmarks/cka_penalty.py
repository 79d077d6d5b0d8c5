"""The CKA penalty, forward and backward, against loops over pairs of layers.

  python benchmarks/cka_penalty.py

Prints a row per number of layers and samples: milliseconds of the penalty, and the times of
these as multiples of it:

- a copy of the features: reading and writing their bytes once;
- the products: x x' and a [n, n] matrix times x for each feature, and nothing else. No value and
  gradient of linear CKA can do with less, so this is what the penalty is measured by;
- the loop over pairs in one compiled function with each Gram matrix made once, as a user of JAX
  would write it;
- the same loop in float64, as NumPy code computes it;
- the loop whose pairs are compiled calls of their own, as research code does: three HSICs from six
  Gram matrices for every ordered pair.

Features have the sizes of ResNet-20's blocks (L = 9) and of the same network with ten blocks a
stage (L = 30, ResNet-62). Each time is the median of interleaved calls, and the last column is the
largest spread of a row's ratios: half the distance of their quartiles, in percent.

A second table has what the number of layers costs at n = 8: the seconds to compile the penalty and
the loop in one jit, and the memory that each needs beside the features and their gradients, in
bytes of the features.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from output import print_table

from cka_sr_jax import cka_penalty
from cka_sr_jax.accounting import interleaved_times

SHAPES = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
REPEATS = {8: 15, 32: 9, 128: 5}


def features(blocks: int, samples: int) -> dict[str, tuple[jax.Array, ...]]:
    """Random features of three stages."""
    keys = iter(jax.random.split(jax.random.key(0), 3 * blocks))
    return {
        f"stage{i}": tuple(
            jax.random.normal(next(keys), (samples, *shape), jnp.float32) for _ in range(blocks)
        )
        for i, shape in enumerate(SHAPES, start=1)
    }


def gram(x: jax.Array) -> jax.Array:
    """x x' with a zero diagonal."""
    x = x.reshape(len(x), -1)
    return jnp.where(jnp.eye(len(x), dtype=bool), 0, x @ x.T)


def hsic(k: jax.Array, m: jax.Array) -> jax.Array:
    """The debiased HSIC of two Gram matrices, by its formula."""
    n = len(k)
    return (
        jnp.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    ) / (n * (n - 3))


def pair_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """CKA by the formula: every Gram matrix made anew for every HSIC."""
    (xx, yy), xy = ((hsic(gram(a), gram(a)) for a in (x, y)), hsic(gram(x), gram(y)))
    return xy / (jnp.sqrt(xx) * jnp.sqrt(yy))


pair_step = jax.jit(jax.value_and_grad(pair_cka, argnums=(0, 1)))
penalty_step = jax.jit(jax.value_and_grad(cka_penalty))


def loop_penalty(stages: dict[str, tuple[jax.Array, ...]]) -> jax.Array:
    """The ordered double sum, for one `jit` around it; each Gram and each norm is made once."""
    total = jnp.zeros(())
    for blocks in stages.values():
        grams = [gram(x) for x in blocks]
        norms = [jnp.sqrt(hsic(k, k)) for k in grams]
        for i, j in itertools.permutations(range(len(blocks)), 2):
            total += hsic(grams[i], grams[j]) / (norms[i] * norms[j])
    return total


@jax.jit
def products_step(stages: dict[str, tuple[jax.Array, ...]], square: jax.Array) -> list[jax.Array]:
    """What value and gradient need at least: x x', and `square` [n, n] times x."""
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(stages)]
    return [x @ x.T for x in flat] + [square @ x for x in flat]


loop_step = jax.jit(jax.value_and_grad(loop_penalty))
copy_step = jax.jit(lambda stages: jax.tree.map(lambda x: 2 * x, stages))


def naive_step(stages: dict[str, tuple[jax.Array, ...]]) -> tuple[jax.Array, dict]:
    """Value and gradients of the ordered double sum, pair by pair."""
    total = jnp.zeros(())
    grads = jax.tree.map(jnp.zeros_like, stages)
    for stage, blocks in stages.items():
        stage_grads = list(grads[stage])
        for i, j in itertools.product(range(len(blocks)), repeat=2):
            if i == j:
                continue  # constant
            value, (grad_i, grad_j) = pair_step(blocks[i], blocks[j])
            total += value
            stage_grads[i] += grad_i
            stage_grads[j] += grad_j
        grads[stage] = tuple(stage_grads)
    return total, grads


def row(blocks: int, samples: int) -> list[str]:
    """Milliseconds of the penalty, and its rivals' times as multiples of it."""
    stages = features(blocks, samples)
    doubles = jax.tree.map(lambda x: x.astype(jnp.float64), stages)
    expected = loop_step(doubles)[0]
    for actual in (penalty_step(stages)[0], loop_step(stages)[0], naive_step(stages)[0]):
        assert abs(expected - actual) < 1e-3 * blocks**2, (expected, actual)
    calls = {
        "penalty": partial(penalty_step, stages),
        "copy": partial(copy_step, stages),
        "products": partial(products_step, stages, jnp.eye(samples, dtype=jnp.float32)),
        "loop": partial(loop_step, stages),
        "double": partial(loop_step, doubles),
        "pairs": partial(naive_step, stages),
    }
    times = interleaved_times(calls, REPEATS[samples], {"penalty": 5, "copy": 5, "products": 5})
    ratios = {name: np.divide(times[name], times["penalty"]) for name in list(calls)[1:]}
    spread = {n: np.subtract(*np.percentile(r, [75, 25])) / np.median(r) for n, r in ratios.items()}
    return [
        str(3 * blocks),
        str(samples),
        f"{np.median(times['penalty']) * 1e3:.2f}",
        *(f"{np.median(ratio):.2f}" for ratio in ratios.values()),
        f"{50 * max(spread.values()):.0f} %",
    ]


def compiled(step: Any, stages: Any) -> tuple[float, float]:
    """(seconds to compile, temporary memory in bytes of the features)."""
    began = time.perf_counter()
    program = jax.jit(lambda stages: step(stages)).lower(stages).compile()
    seconds = time.perf_counter() - began
    size = sum(x.nbytes for x in jax.tree.leaves(stages))
    return seconds, program.memory_analysis().temp_size_in_bytes / size


def compile_row(blocks: int) -> list[str]:
    """What as many layers cost to compile."""
    stages = features(blocks, 8)
    ours, loop = (compiled(step, stages) for step in (penalty_step, loop_step))
    numbers = ours[0], loop[0], ours[1], loop[1]
    return [str(3 * blocks), *(f"{number:.2f}" for number in numbers)]


def main() -> None:
    """Print the tables."""
    jax.config.update("jax_enable_x64", True)  # for the loop in float64; the others are in float32
    print_table(
        "CKA-SR penalty, value and gradient; the columns after it are multiples of its time",
        [
            "L",
            "n",
            "penalty (ms)",
            "copy",
            "products",
            "one jit",
            "one jit, float64",
            "pair by pair",
            "spread",
        ],
        [row(blocks, samples) for blocks, samples in ((3, 8), (3, 32), (3, 128), (10, 8))],
    )
    print_table(
        "More layers, n = 8",
        ["L", "compile (s)", "loop", "memory", "loop"],
        [compile_row(blocks) for blocks in (3, 10, 20)],
    )


if __name__ == "__main__":
    main()
