"""What the paper's tables 2 and 5 say by themselves: how their single runs scatter.

  python cka_sr_jax/analysis/paper_tables.py

The accuracies are those in the docstrings of configs/paper/table2_rst_cifar10.py, where the run
that collapsed (below 80 %) is left out, and of configs/paper/cifar100_resnet20_rst.py.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy import stats

from cka_sr_jax.analysis.paired import compare

ROOT = Path(__file__).parents[2]
BASELINE = 84.16
COLLAPSED_BELOW = 80.0
SIMULATIONS = 100_000


def table_2() -> np.ndarray:
    """Accuracies [sampling schemes, betas] in percent, NaN for the run that collapsed."""
    values = _rows("configs.paper.table2_rst_cifar10", columns=12)
    return np.where(values < COLLAPSED_BELOW, np.nan, values)


def table_5() -> np.ndarray:
    """Accuracies [beta 0, CKA-SR, AugCKA-SR; sparsities] in percent."""
    return _rows("configs.paper.cifar100_resnet20_rst", columns=6)


def _rows(module: str, columns: int) -> np.ndarray:
    """The lines of accuracies in a config's docstring."""
    sys.path.insert(0, str(ROOT))  # where `configs` is
    page = importlib.import_module(module).__doc__ or ""
    lines = re.findall(rf"((?: +\d+\.\d\d){{{columns}}})$", page, re.MULTILINE)
    return np.array([line.split() for line in lines], float)


def summary_of_table_5(values: np.ndarray, deviation: float) -> list[str]:
    """Lines of text: the differences; and what the best of twelve runs gains by chance.

    Args:
      deviation: of a run, as table 2 has it.
    """
    lines = []
    for name, changed in zip(("CKA-SR", "AugCKA-SR"), values[1:], strict=True):
        differences = changed - values[0]
        mean, half_width, _ = compare(differences)
        lines.append(
            f"{name}: {(differences > 0).sum()} of {differences.size} sparsities above beta 0, "
            f"{mean:+.2f} ± {half_width:.2f} (95 % t)"
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
    runs = table_2()
    for line in [
        "Table 2, ResNet-20 on CIFAR-10 at 95 % sparsity",
        *summary_of_table_2(runs),
        "",
        "Table 5, ResNet-20 on CIFAR-100",
        *summary_of_table_5(table_5(), float(np.nanstd(runs, ddof=1))),
    ]:
        Console(soft_wrap=True).print(line, highlight=False)


if __name__ == "__main__":
    main()
