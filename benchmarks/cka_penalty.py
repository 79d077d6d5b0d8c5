"""The CKA penalty, forward and backward, against the loop over pairs of layers.

  python benchmarks/cka_penalty.py

Prints a row per number of layers and samples: milliseconds of the penalty, of the loop, and their
ratio. The loop follows the formula, as research code does: for every ordered pair of layers of a
stage it adds three HSICs from six Gram matrices. Each pair's value and gradient is one compiled
call, so Python costs the loop only the calls. Features have the sizes of ResNet-20's blocks (L = 9)
and of the same network with ten blocks a stage (L = 30, ResNet-62).
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from output import print_table

from cka_sr_jax import cka_penalty
from cka_sr_jax.accounting import interleaved_seconds

SHAPES = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
REPEATS = {8: 15, 32: 9, 128: 5}


def features(blocks: int, samples: int) -> dict[str, tuple[jax.Array, ...]]:
    """Random features of three stages."""
    keys = iter(jax.random.split(jax.random.key(0), 3 * blocks))
    return {
        f"stage{i}": tuple(jax.random.normal(next(keys), (samples, *shape)) for _ in range(blocks))
        for i, shape in enumerate(SHAPES, start=1)
    }


def pair_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """CKA by the formula: every Gram matrix made anew for every HSIC."""
    n = len(x)

    def hsic(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.reshape(n, -1), b.reshape(n, -1)
        k = jnp.where(jnp.eye(n, dtype=bool), 0, a @ a.T)
        m = jnp.where(jnp.eye(n, dtype=bool), 0, b @ b.T)
        return (
            jnp.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        ) / (n * (n - 3))

    return hsic(x, y) / (jnp.sqrt(hsic(x, x)) * jnp.sqrt(hsic(y, y)))


pair_step = jax.jit(jax.value_and_grad(pair_cka, argnums=(0, 1)))
penalty_step = jax.jit(jax.value_and_grad(cka_penalty))


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


def main() -> None:
    """Print the table."""
    rows = []
    for blocks, samples in itertools.product((3, 10), (8, 32, 128)):
        stages = features(blocks, samples)
        expected, actual = naive_step(stages)[0], penalty_step(stages)[0]
        assert abs(expected - actual) < 1e-3 * blocks**2, (expected, actual)
        calls = {
            "penalty": lambda s=stages: penalty_step(s),
            "loop": lambda s=stages: naive_step(s),
        }
        times = interleaved_seconds(calls, REPEATS[samples], {"penalty": 5})
        rows.append(
            [
                f"{3 * blocks}",
                f"{samples}",
                f"{times['penalty'] * 1e3:.2f}",
                f"{times['loop'] * 1e3:.1f}",
                f"{times['loop'] / times['penalty']:.1f}",
            ]
        )
    print_table(
        "CKA-SR penalty, value and gradient: median of interleaved runs",
        ["layers L", "samples n", "penalty (ms)", "loop over pairs (ms)", "loop / penalty"],
        rows,
    )


if __name__ == "__main__":
    main()
