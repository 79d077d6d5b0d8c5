"""What the paper's tables 2 and 5 say by themselves: how their single runs scatter.

Run it from the root of the repository:

  python -m cka_sr_jax.analysis.paper_tables

It reads the accuracies from the docstrings of configs/paper/table2_rst_cifar10.py and
configs/paper/cifar100_resnet20_rst.py. It leaves out the run of table 2 that collapsed (below
80 %).
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.comparison import compare

BASELINE = 84.16
COLLAPSED_BELOW = 80.0
SIMULATIONS = 100_000


def table_2() -> np.ndarray:
    """Accuracies [sampling schemes, betas] in percent, NaN for the run that collapsed."""
    values = _rows("configs/paper/table2_rst_cifar10.py", columns=12)
    return np.where(values < COLLAPSED_BELOW, np.nan, values)


def table_5() -> np.ndarray:
    """Accuracies [beta 0, CKA-SR, AugCKA-SR; sparsities] in percent."""
    return _rows("configs/paper/cifar100_resnet20_rst.py", columns=6)


def _rows(config: str, columns: int) -> np.ndarray:
    """The lines of accuracies in a config's docstring."""
    if not Path(config).exists():
        raise ValueError(f"{config} is not in this folder: run this from the repository's root.")
    page = ast.get_docstring(ast.parse(Path(config).read_text(encoding="utf-8"))) or ""
    lines = re.findall(rf"((?: +\d+\.\d\d){{{columns}}})$", page, re.MULTILINE)
    return np.array([line.split() for line in lines], float)


def summary_of_table_5(values: np.ndarray, deviation: float) -> list[str]:
    """Lines of text: the differences, and what the best of twelve runs gains by chance.

    Args:
      values: of `table_5`.
      deviation: the standard deviation of a run, taken from table 2.
    """
    lines = []
    for name, changed in zip(("CKA-SR", "AugCKA-SR"), values[1:], strict=True):
        differences = changed - values[0]
        compared = compare(differences)
        lines.append(
            f"{name}: {(differences > 0).sum()} of {differences.size} sparsities above beta 0, "
            f"{compared.mean:+.2f} ± {compared.t_interval:.2f} (95 % t)"
        )
    best = np.random.default_rng(0).normal(0, deviation, (SIMULATIONS, 12)).max(axis=1)
    return [
        *lines,
        f"the best of 12 runs that scatter as in table 2 ({deviation:.2f}) gains "
        f"{best.mean():+.2f} by chance",
    ]


def summary_of_table_2(values: np.ndarray) -> list[str]:
    """Lines of text: the scatter, what explains it, the best run and the baseline."""
    runs = values[~np.isnan(values)]
    count, mean, deviation = runs.size, runs.mean(), runs.std(ddof=1)
    p_of = {
        name: stats.f_oneway(*[line[~np.isnan(line)] for line in lines]).pvalue
        for name, lines in (("beta", values.T), ("sampling", values))
    }
    draws = np.random.default_rng(0).normal(mean, deviation, (SIMULATIONS, count)).max(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    # A new run of the same distribution lies within t * spread of the mean.
    spread = deviation * np.sqrt(1 + 1 / count)
    half_width = stats.t.ppf(0.975, count - 1) * spread
    p_baseline = 2 * stats.t.sf(abs(mean - BASELINE) / spread, count - 1)
    return [
        f"{count} runs: mean {mean:.2f}, standard deviation {deviation:.2f}",
        f"one-way analysis of variance: by beta p = {p_of['beta']:.2f}, "
        f"by sampling p = {p_of['sampling']:.2f}",
        f"best {runs.max():.2f}; the best of {count} draws of that normal distribution: "
        f"{draws.mean():.2f} on average, 95 % {low:.2f} to {high:.2f}",
        f"mean - baseline: {mean - BASELINE:+.2f} ± {half_width:.2f} (95 %), p = {p_baseline:.2f}; "
        f"{(runs < BASELINE).sum()} of {count} runs are below the baseline's one run",
    ]


def main() -> None:
    """Print the summaries."""
    try:
        runs, gains = table_2(), table_5()
    except ValueError as error:
        sys.exit(error_line(error))
    print("Table 2, ResNet-20 on CIFAR-10 at 95 % sparsity")
    print(*summary_of_table_2(runs), sep="\n")
    print("\nTable 5, ResNet-20 on CIFAR-100")
    print(*summary_of_table_5(gains, float(np.nanstd(runs, ddof=1))), sep="\n")


if __name__ == "__main__":
    main()
