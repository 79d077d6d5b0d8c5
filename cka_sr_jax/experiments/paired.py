"""Paired comparisons: the same seed, initial weights, masks and data with and without a change.

  python -m cka_sr_jax.experiments.paired runs/GRID --field=cka.beta --baseline=0 \\
    --rows=sparsity.rule,sparsity.density

Of the field's values the one with the best mean validation accuracy is compared with the baseline,
and the test set has no say in the choice. Single values are compared with --value=V.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cka_sr_jax._errors import unknown
from cka_sr_jax.experiments.figures import draw_differences, write_png
from cka_sr_jax.experiments.rows import Row, cell_text, check_alike, read_runs, write_csv

BOOTSTRAP_SAMPLES = 10_000


class Comparison(NamedTuple):
    """A value of the field against the baseline, over the seeds that both have.

    Attributes:
      chosen: the value compared; candidates: how many values it was chosen from.
      baseline, changed: mean test accuracy of each, in percent.
      difference: mean of changed - baseline over the pairs, in points.
      t_interval: half-width of its 95 % confidence interval by Student's t; NaN for one pair.
      bootstrap: 95 % percentile interval of resampled pairs.
      wins, ties, losses: pairs with a positive, zero and negative difference.
    """

    chosen: Any
    candidates: int
    pairs: int
    baseline: float
    changed: float
    difference: float
    t_interval: float
    bootstrap: tuple[float, float]
    wins: int
    ties: int
    losses: int


def compare(differences: Sequence[float]) -> tuple[float, float, tuple[float, float]]:
    """(mean, half-width of the 95 % t interval, 95 % bootstrap interval) of paired differences.

    The bootstrap resamples pairs 10,000 times with a fixed seed and takes percentiles.

    Raises:
      ValueError: no differences.
    """
    values = np.asarray(differences, float)
    if not values.size:
        raise ValueError("there are no pairs to compare: run both values with the same seeds.")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return mean, math.nan, (math.nan, math.nan)
    half_width = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, n, (BOOTSTRAP_SAMPLES, n))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, half_width, (float(low), float(high))


def choose_and_compare(
    rows: Sequence[Row], field: str, baseline: Any, value: Any = None
) -> Comparison:
    """The value of `field` with the best mean validation accuracy, against the baseline.

    Args:
      rows: of `read_runs`, alike but for `field` and "seed".
      field: such as "cka.beta"; baseline: its value to compare with.
      value: compare this one; None: choose on validation data.

    Raises:
      ValueError: no run at the baseline or at another value; no validation accuracy to choose by;
        runs that differ in more than `field` and seed.
    """
    check_alike(rows, allowed=[field, "seed"])
    by_value: dict[Any, dict[Any, Row]] = defaultdict(dict)
    for row in rows:
        by_value[row[field]][row.get("seed", 0)] = row
    others = [v for v in by_value if v != baseline and (value is None or v == value)]
    if baseline not in by_value or not others:
        raise ValueError(
            f"there are runs at {field} = {', '.join(map(str, by_value))}: a comparison needs "
            f"{baseline} and {'another' if value is None else value}."
        )
    if len(others) > 1 and any(row.get("validation.accuracy") is None for row in rows):
        raise ValueError("some runs have no validation accuracy to choose by: set data.validation.")
    chosen = max(others, key=lambda v: _mean(by_value[v], "validation.accuracy", others))
    seeds = sorted(by_value[baseline].keys() & by_value[chosen].keys())
    tested = {
        v: np.array([100 * float(by_value[v][seed]["test.accuracy"]) for seed in seeds])
        for v in (baseline, chosen)
    }
    differences = tested[chosen] - tested[baseline]
    mean, half_width, bootstrap = compare(differences)
    return Comparison(
        chosen=chosen,
        candidates=len(others),
        pairs=len(seeds),
        baseline=float(tested[baseline].mean()),
        changed=float(tested[chosen].mean()),
        difference=mean,
        t_interval=half_width,
        bootstrap=bootstrap,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def comparisons(
    rows: Sequence[Row], by_row: Sequence[str], field: str, baseline: Any, value: Any = None
) -> dict[tuple[Any, ...], Comparison]:
    """`choose_and_compare` for each combination of the `by_row` fields."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(name) for name in by_row)].append(row)
    return {key: choose_and_compare(g, field, baseline, value) for key, g in groups.items()}


def paired_table(
    rows: Sequence[Row], by_row: Sequence[str], field: str, baseline: Any, value: Any = None
) -> str:
    """A Markdown table with one comparison for each combination of the `by_row` fields."""
    name = field.rpartition(".")[2]
    header = [
        *(part.rpartition(".")[2] for part in by_row),
        f"{name} {baseline:g}" if isinstance(baseline, int | float) else str(baseline),
        f"chosen {name} (of)",
        "accuracy",
        "difference (95 % t)",
        "95 % bootstrap",
        "wins/ties/losses",
    ]
    lines = [header, ["---"] * len(by_row) + ["---:"] * 6]
    for key, c in comparisons(rows, by_row, field, baseline, value).items():
        lines.append(
            [
                *map(cell_text, key),
                f"{c.baseline:.2f}",
                f"{c.chosen:g} ({c.candidates})",
                f"{c.changed:.2f}",
                f"{c.difference:+.2f} ± {c.t_interval:.2f}",
                f"{c.bootstrap[0]:+.2f} to {c.bootstrap[1]:+.2f}",
                f"{c.wins}/{c.ties}/{c.losses}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(runs: Mapping[Any, Row], name: str, others: Sequence[Any]) -> float:
    """Mean over the runs; without a choice to make, no value is needed."""
    return float(np.mean([float(row[name]) for row in runs.values()])) if len(others) > 1 else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of paired comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid, or CSV files")
    parser.add_argument("--field", default="cka.beta", help="what differs in a pair")
    parser.add_argument("--baseline", type=float, default=0.0)
    parser.add_argument("--value", type=float, help="compare this value, not the validated one")
    parser.add_argument("--rows", default="sparsity.density", help="fields, separated by commas")
    parser.add_argument("--csv", help="also write every run to this file")
    parser.add_argument("--png", help="also draw the differences to this file")
    options = parser.parse_args(arguments)
    by_row = options.rows.split(",")
    try:
        rows = read_runs(options.paths, keep=[options.field, *by_row])
        for name in (options.field, *by_row):
            if name not in rows[0]:
                raise ValueError(unknown("field of these runs:", name, rows[0]))
        asked = (rows, by_row, options.field, options.baseline, options.value)
        print(paired_table(*asked))
        if options.csv:
            write_csv(rows, options.csv)
        if options.png:
            found = {
                " ".join(map(cell_text, key)): (c.difference, c.t_interval)
                for key, c in comparisons(*asked).items()
            }
            write_png(draw_differences(found), options.png)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
