"""Inference of a vision transformer that drops tokens: time against operations, removed and masked.

  python benchmarks/tokens.py

DeiT-Tiny (vit-tiny) on images of 224x224, batch 8, with random weights. At keep rate r, a share r,
r^2 and r^3 of the patches is left after the blocks 3, 6 and 9, as in DynamicViT. "FLOPs" are those
of XLA's compiled program, attention and scores included, as a share of the program that drops
nothing; "time" is the same share of the medians of calls that take turns. "masked" leaves the
dropped tokens in the arrays, and "apart" is the largest difference of the outputs of the two,
relative to the largest output. The column "score-cka" is the time with the ranking of the CKA-SR
paper in place of the score alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from output import print_table

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.models import create_model

BATCH, RATES, REPEATS = 8, (0.9, 0.7, 0.5), 11
COLUMNS = ["keep rate", "GFLOPs an image", "ms", "FLOPs", "time", "masked", "score-cka", "apart"]


def main() -> None:
    """Time all in turns, and print one table."""
    images = jax.random.normal(jax.random.key(0), (BATCH, 224, 224, 3))
    cascade = {rate: (rate, rate**2, rate**3) for rate in RATES}
    full = create_model("vit-tiny", 1000)
    whole = create_model("vit-tiny", 1000, keep_rates=cascade[RATES[0]])
    variables = jax.jit(partial(whole.init, train=False))(jax.random.key(1), images)
    models: dict[Any, Any] = {"full": full}
    for rate, rates in cascade.items():
        models[rate, "removed"] = full.clone(keep_rates=rates)
        models[rate, "masked"] = full.clone(keep_rates=rates, remove=False)
        models[rate, "score-cka"] = full.clone(keep_rates=rates, keep_by="score-cka")
    compiled = {
        key: jax.jit(partial(model.apply, train=False)).lower(variables, images).compile()
        for key, model in models.items()
    }
    calls = {
        str(key): lambda program=program: jax.block_until_ready(program(variables, images))
        for key, program in compiled.items()
    }
    found = interleaved_seconds(calls, REPEATS, dict.fromkeys(calls, 1))
    seconds = {key: found[str(key)] for key in compiled}
    flops = {key: program.cost_analysis()["flops"] for key, program in compiled.items()}
    gigaflops, milliseconds = (f"{flops['full'] / BATCH / 1e9:.2f}", f"{seconds['full'] * 1e3:.0f}")
    rows = [["1", gigaflops, milliseconds, "1.00", "1.00", "-", "-", "-"]]
    for rate in RATES:
        removed, masked, ranked = ((rate, how) for how in ("removed", "masked", "score-cka"))
        outputs = [np.asarray(compiled[key](variables, images)) for key in (removed, masked)]
        apart = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max()
        times = [f"{seconds[key] / seconds['full']:.2f}" for key in (removed, masked, ranked)]
        rows.append([
            f"{rate}",
            f"{flops[removed] / BATCH / 1e9:.2f}",
            f"{seconds[removed] * 1e3:.0f}",
            f"{flops[removed] / flops['full']:.2f}",
            *times,
            f"{apart:.0e}",
        ])  # fmt: skip
    print_table("DeiT-Tiny with fewer tokens, batch 8", COLUMNS, rows)


if __name__ == "__main__":
    main()
