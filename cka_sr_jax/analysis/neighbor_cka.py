"""How similar neighboring layers are, from the CKA matrices of stored runs.

  python -m cka_sr_jax.analysis.neighbor_cka results/fashion_mnist_mlp_cka_blocks.jsonl

Prints a Markdown table with a row for each rule and penalty: over its runs, the range of CKA
between the least similar two neighboring layers, and between the most similar two. Where the runs
differ in penalty.pairs or penalty.energy, a column names both.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.rows import config_row
from cka_sr_jax.analysis.run import Run, matrix_of
from cka_sr_jax.analysis.runs import load_runs
from cka_sr_jax.report import markdown_table

HEADER = [
    "rule",
    "pairs, energy",
    "beta",
    "runs",
    "least similar neighbors",
    "most similar neighbors",
]


def neighbors(run: Run) -> np.ndarray:
    """CKA between each layer and the next [L - 1].

    Raises:
      ValueError: the run has no CKA matrix.
    """
    return np.diag(np.array(matrix_of(run)["values"]), k=1)


def neighbor_table(runs: Sequence[Run]) -> str:
    """The Markdown table of these runs."""
    found = defaultdict(list)
    for run in runs:
        row = config_row(run.config)
        kind = f"{row['penalty.pairs']}, {row['penalty.energy']}"
        found[row["sparsity.rule"], kind, row["penalty.beta"]].append(neighbors(run))
    rows = []
    for (rule, kind, beta), values in sorted(found.items()):
        ends = np.min(values, axis=1), np.max(values, axis=1)
        ranges = [f"{end.min():.2f} to {end.max():.2f}" for end in ends]
        rows.append([rule, kind, f"{beta:g}", str(len(values)), *ranges])
    if len({kind for _, kind, _ in found}) > 1:
        return markdown_table(HEADER, rows, "lllrrr")
    others = [i for i, name in enumerate(HEADER) if name != "pairs, energy"]
    return markdown_table(
        [HEADER[i] for i in others], [[r[i] for i in others] for r in rows], "llrrr"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid or of runs, JSON-lines files")
    try:
        print(neighbor_table(load_runs(parser.parse_args(arguments).paths)))
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
