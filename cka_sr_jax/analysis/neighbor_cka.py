"""How similar neighboring layers are, from the CKA matrices in the reports of stored runs.

  python cka_sr_jax/analysis/neighbor_cka.py docs/runs/fashion_mnist_mlp_cka_blocks

The folder holds one folder for each run, with its config.json and report/cka_matrix.csv.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from cka_sr_jax.analysis.runs import as_row


def neighbors(run: Path) -> np.ndarray:
    """CKA between each layer and the next [L - 1], of a run's report/cka_matrix.csv."""
    _, *rows = csv.reader((run / "report" / "cka_matrix.csv").read_text().splitlines())
    return np.diag(np.array([row[1:] for row in rows], float), k=1)


def main(folder: str) -> None:
    """Print the ranges over runs of each run's least and most similar two neighbors."""
    found = defaultdict(list)
    for path in sorted(Path(folder).glob("*/config.json")):
        row = as_row(path)
        found[row["sparsity.rule"], row["penalty.beta"]].append(neighbors(path.parent))
    print("| rule | beta | runs | least similar neighbors | most similar neighbors |")
    print("| --- | --- | ---: | ---: | ---: |")
    for (rule, beta), values in sorted(found.items()):
        ends = np.min(values, axis=1), np.max(values, axis=1)
        ranges = [f"{end.min():.2f} to {end.max():.2f}" for end in ends]
        print(f"| {rule} | {beta:g} | {len(values)} | {' | '.join(ranges)} |")


if __name__ == "__main__":
    main(sys.argv[1])
