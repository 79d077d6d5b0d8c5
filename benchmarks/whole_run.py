"""What a whole run takes beside its training steps, and how many runs of a sweep fit in an hour.

  python benchmarks/whole_run.py --data_dir=FOLDER [--baseline=CHECKOUT]

FOLDER holds the TFDS set fashion_mnist (docs/running.md, "Data sets"). Prints two tables:

1. The seconds of `launch.py` with a warm cache of compiled programs, from the start of the process
   to its end, against as many calls of the bare compiled step on one batch, in turns: configs
   digits and fashion_mnist_mlp.
2. Points an hour of a sweep of 12 points of the Fashion-MNIST MLP with 600 steps each, by
   `--grid --jobs=2`; with CHECKOUT, an older checkout of this repository, its points beside them,
   in turns, and whether the results are equal digit for digit.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from output import print_table

from cka_sr_jax.training import build

HERE = Path(__file__).resolve().parents[1]
ROUNDS = 3
SWEEP = {
    "train.steps": 600,
    "seeds": "(0,1,2)",
    "grid.sparsity.rule": "('rst','rigl')",
    "grid.sparsity.density": "(0.05,)",
    "grid.penalty.beta": "(0.0,1e-3)",
}


def launch(checkout: Path, config: str, workdir: Path, *options: str) -> float:
    """Seconds of one run of a checkout's `launch.py`."""
    command = [sys.executable, str(checkout / "launch.py"), f"--config={checkout / config}"]
    start = time.perf_counter()
    subprocess.run(
        [*command, f"--workdir={workdir}", *options],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


class BareSteps:
    """The compiled step of a config on one batch that is there already."""

    def __init__(self, config: Any) -> None:
        self.plan = build.build_plan(config)
        size = config.train.batch_size
        images = jnp.asarray(self.plan.dataset.train_images[:size], jnp.float32) / 255
        labels = jnp.asarray(self.plan.dataset.train_labels[:size])
        self._batch = {"image": images, "label": labels}
        step = build.train_step(self.plan, config.seed, config.penalty.beta)
        self._step = jax.jit(lambda s, batch: step(s, batch, None), donate_argnums=0)
        self.seconds(3)

    def seconds(self, steps: int) -> float:
        """Of so many steps from the first state."""
        state = build.new_state(self.plan)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = self._step(state, self._batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start


def run_row(config_file: str, data_dir: str | None) -> list[str]:
    """A config's whole runs against its bare steps, in turns after one run that fills the cache."""
    config = runpy.run_path(str(HERE / config_file))["get_config"]()
    options = [f"--config.data.dir={data_dir}"] if data_dir else []
    config.data.dir = data_dir or ""
    bare = BareSteps(config)
    whole, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        first = launch(HERE, config_file, Path(folder) / "first", *options)
        for i in range(ROUNDS):
            whole.append(launch(HERE, config_file, Path(folder) / str(i), *options))
            steps.append(bare.seconds(bare.plan.steps))
    ratios = np.divide(whole, steps)
    return [
        Path(config_file).stem,
        str(bare.plan.steps),
        f"{first:.2f}",
        f"{np.median(whole):.2f}",
        f"{np.median(steps):.2f}",
        f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]


def sweep_rows(data_dir: str, checkouts: dict[str, Path]) -> list[list[str]]:
    """Points an hour of each checkout, in turns, and the test losses of all their points."""
    config = "configs/studies/fashion_mnist_mlp_cka.py"
    options = [f"--config.{field}={value}" for field, value in SWEEP.items()]
    options += [f"--config.data.dir={data_dir}", "--grid", "--jobs=2"]
    rates: dict[str, list[float]] = {name: [] for name in checkouts}
    losses: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds = launch(checkout, config, Path(folder), *options)
                results = sorted(Path(folder).rglob("result.json"))
                losses[name] = {
                    str(path.relative_to(folder)): json.loads(path.read_text())["test"]["loss"]
                    for path in results
                }
                rates[name].append(3600 * len(results) / seconds)
    last = list(checkouts)[-1]
    return [
        [
            name,
            str(len(losses[name])),
            f"{np.median(rates[name]):.0f}",
            f"{np.median(np.divide(rates[name], rates[last])):.2f}",
            "yes" if losses[name] == losses[last] else "no",
        ]
        for name in checkouts
    ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder of TFDS sets")
    parser.add_argument("--baseline", type=Path, help="an older checkout to compare sweeps with")
    args = parser.parse_args()
    print_table(
        f"Whole runs, median of {ROUNDS}",
        ["config", "steps", "first run (s)", "later (s)", "bare steps (s)", "later / bare"],
        [
            run_row("configs/quickstart/digits.py", None),
            run_row("configs/quickstart/fashion_mnist_mlp.py", args.data_dir),
        ],
    )
    checkouts = {"this checkout": HERE}
    if args.baseline:
        checkouts["baseline"] = args.baseline.resolve()
    print_table(
        f"A sweep by two processes, median of {ROUNDS}",
        ["checkout", "points", "points an hour", "ratio", "results equal"],
        sweep_rows(args.data_dir, checkouts),
    )


if __name__ == "__main__":
    main()
