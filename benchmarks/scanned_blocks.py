"""What `scan` saves of a vision transformer: seconds to compile a training step, and its time.

  python benchmarks/scanned_blocks.py

`vit-tiny` on 64x64 images in patches of 16, batch 16, SGD, beside ViTs of 6 and 24 such blocks. The
two programs of a row are compiled in turns, three times each (medians), with no cache of programs.
Takes some two minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from output import print_table

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.models import ViT, vit
from cka_sr_jax.similarity import cka_penalty

BATCH, REPEATS = 16, 3


def step_of(model: ViT) -> Any:
    """`params, images, labels -> params`: a step of SGD with CKA-SR."""

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, sown = model.apply({"params": params}, images, True, mutable=["features"])
        task = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return task + 1e-3 * cka_penalty(sown["features"], samples=8)

    def step(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        grads = jax.grad(loss)(params, images, labels)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step


def main() -> None:
    """Print the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    images = jax.random.normal(jax.random.key(0), (BATCH, 64, 64, 3))
    labels = jnp.arange(BATCH) % 10
    rows = []
    for depth in (6, 12, 24):
        width, _, heads = vit.SIZES["tiny"]
        vit.SIZES["blocks"] = (width, depth, heads)
        models = {scan: ViT(10, size="blocks", scan=scan) for scan in (False, True)}
        compiling: dict[bool, list[float]] = {False: [], True: []}
        calls = {}
        for _ in range(REPEATS):
            for scan, model in models.items():
                params = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, False)
                start = time.perf_counter()
                compiled = jax.jit(step_of(model)).lower(params["params"], images, labels).compile()
                compiling[scan].append(time.perf_counter() - start)
                calls[str(scan)] = lambda c=compiled, p=params["params"]: c(p, images, labels)
        seconds = interleaved_seconds(calls, repeats=10)
        loop, scanned = (statistics.median(compiling[scan]) for scan in (False, True))
        ratio = seconds["True"] / seconds["False"]
        rows.append([str(depth), f"{loop:.2f}", f"{scanned:.2f}", f"{ratio:.2f}"])
    print_table(
        "ViT with and without scan",
        ["blocks", "compile (s)", "with scan (s)", "time of a step, with scan / without"],
        rows,
    )


if __name__ == "__main__":
    main()
