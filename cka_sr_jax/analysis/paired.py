"""Paired comparisons: the same seed, initial weights, masks and data with and without a change.

  python -m cka_sr_jax.analysis.paired runs/GRID --field=penalty.beta --baseline=0 \\
    --rows=sparsity.rule,sparsity.density

Each seed's network is compared with the baseline's at the value of the field that has the best
mean validation accuracy over the OTHER seeds. Chosen with its own, the value would be the one whose
networks happen to be good, and its gain too high: where the field does nothing by 0.25 to 0.5
standard deviations of a run, for 2 or 3 values and 3 to 5 seeds. The test set has no say in the
choice. But seeds that choose for each other are not independent pairs: see `choose_and_compare`.
Single values are compared with --value=V, or all of them side by side with --each.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cka_sr_jax.analysis.figures import draw_differences, write_png
from cka_sr_jax.analysis.runs import (
    RESULTS,
    SHARES,
    Row,
    cell_text,
    check_alike,
    check_result,
    error_line,
    in_order,
    notes,
    parse_value,
    read_runs,
    write_csv,
)

BOOTSTRAP_SAMPLES = 10_000
CHOOSE = object()  # in place of a value; None is one, such as a rule's own default


class Comparison(NamedTuple):
    """Values of the field against the baseline, over the seeds that all values have.

    Attributes:
      chosen: {value: how many seeds it was chosen for}, by the other seeds' validation accuracy; a
        single seed chooses by its own, and its difference is too high on average.
      candidates: how many values there were to choose from.
      pairs: the number of seeds; left_out: of seeds of which the baseline or some value has no run,
        or none with the measure.
      baseline, changed: mean of each of what is measured, shares and accuracies in percent.
      difference: mean of changed - baseline over the pairs.
      t_interval: half-width of its 95 % confidence interval by Student's t; NaN for one pair.
      bootstrap: 95 % percentile interval of resampled pairs; too narrow for few pairs, see
        `compare`.
      wins, ties, losses: pairs with a positive, zero and negative difference.
    """

    chosen: dict[Any, int]
    candidates: int
    pairs: int
    left_out: int
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

    The bootstrap resamples pairs 10,000 times with a fixed seed and takes percentiles. With few
    pairs it covers too little, about 76 % at 3 and 84 % at 5 normally distributed pairs where it
    says 95 %: trust the t interval there.

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
    rows: Sequence[Row],
    field: str,
    baseline: Any,
    value: Any = CHOOSE,
    measure: str = "test.accuracy",
) -> Comparison | None:
    """The values of `field` that validation data choose against the baseline, pair by pair.

    Where there are several to choose from, the intervals of the difference are too narrow: each
    seed's networks have a say in the choice for the other seeds. Where the field does nothing and
    each network's test accuracy is its validation accuracy, the 95 % t interval of the best of
    three covers 0 in 93 % of grids with 3 seeds, 92 % with 5 and 86 % with 20, and with 5 in 88 %
    if the baseline's runs do not scatter at all; it covers more, the less the two agree. The
    intervals of a single `value` are exact for normal differences.

    Args:
      rows: of `read_runs`, alike but for `field` and "seed".
      field: such as "penalty.beta"; baseline: its value to compare with.
      value: compare this one; CHOOSE: for each seed that which the other seeds choose.
      measure: a name in `rows.RESULTS`, what is compared. Seeds are left out where some run has
        none, such as one that diverged.

    Returns:
      None where there is nothing to compare yet: the baseline or the other values are missing, or
      there is no seed of which all of them have the measure.

    Raises:
      ValueError: values to choose from and a run without validation accuracy; runs that differ in
        more than `field` and seed.
    """
    check_alike(rows, allowed=[field, "seed"])
    runs: dict[Any, dict[Any, Row]] = defaultdict(dict)
    for row in rows:
        runs[row[field]][row.get("seed")] = row
    others = [v for v in runs if v != baseline and value in (CHOOSE, v)]
    if baseline not in runs or not others:
        return None
    seeds_of = [set(runs[v]) for v in (baseline, *others)]
    seeds = [
        seed
        for seed in sorted(set.intersection(*seeds_of), key=in_order)
        if None not in [runs[v][seed].get(measure) for v in (baseline, *others)]
    ]
    if not seeds:
        return None

    def measured(of: Any, name: str) -> np.ndarray:
        found = [runs[of][seed].get(name) for seed in seeds]
        if None in found:
            raise ValueError(
                f"some runs with {field} = {of} have no {name}, which this comparison needs: leave "
                "them out, or choose the value yourself with --value."
            )
        return np.array(found, float)

    choice = np.zeros(len(seeds), int)  # of each seed, into `others`
    if len(others) > 1:
        choice = choose_by_others(np.array([measured(v, "validation.accuracy") for v in others]))
    scale = 100 if measure in SHARES else 1
    changed = scale * np.array([measured(v, measure) for v in others])
    changed = changed[choice, np.arange(len(seeds))]
    unchanged = scale * measured(baseline, measure)
    differences = changed - unchanged
    mean, half_width, bootstrap = compare(differences)
    return Comparison(
        chosen=dict(Counter(others[i] for i in choice).most_common()),
        candidates=len(others),
        pairs=len(seeds),
        left_out=len(set.union(*seeds_of)) - len(seeds),
        baseline=float(unchanged.mean()),
        changed=float(changed.mean()),
        difference=mean,
        t_interval=half_width,
        bootstrap=bootstrap,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def choose_by_others(validation: np.ndarray) -> np.ndarray:
    """For each seed the candidate with the best mean over the other seeds; one seed: its own best.

    Args:
      validation: accuracies [candidates, seeds].

    Returns:
      The candidates' indices [seeds]; the first of equals.
    """
    seeds = validation.shape[1]
    if seeds == 1:
        return validation.argmax(axis=0)
    others = (np.delete(validation, i, axis=1) for i in range(seeds))
    # Rounded, or equal counts of correct images would be told apart by the order of their sum.
    return np.array([values.mean(axis=1).round(9).argmax() for values in others])


def comparisons(
    rows: Sequence[Row],
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    value: Any = CHOOSE,
    measure: str = "test.accuracy",
) -> dict[tuple[Any, ...], Comparison | None]:
    """`choose_and_compare` for each combination of the `by_row` fields, and its errors."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(name) for name in by_row)].append(row)
    ordered = sorted(groups.items(), key=lambda item: [*map(in_order, item[0])])
    return {key: choose_and_compare(g, field, baseline, value, measure) for key, g in ordered}


def paired_table(
    found: Mapping[tuple[Any, ...], Comparison | None],
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    measure: str = "test.accuracy",
) -> str:
    """A Markdown table with a row for each of `comparisons`, of the same arguments."""
    name = field.rpartition(".")[2]
    header = [
        f"{name} {cell_text(baseline)}",
        f"chosen {name} (pairs)",
        "candidates",
        measure.removeprefix("test."),
        "difference (95 % t)",
        "95 % bootstrap",
        "pairs",
        "wins/ties/losses",
    ]
    lines = {key: _cells(c) if c else ["-"] * len(header) for key, c in found.items()}
    return _markdown(by_row, header, lines)


def table_of_each(
    found: Mapping[Any, Mapping[tuple[Any, ...], Comparison | None]],
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    measure: str = "test.accuracy",
) -> str:
    """A Markdown table of differences with a column for each value of the field.

    Args:
      found: {value: `comparisons` with that value}. The baseline's column is its mean over the
        pairs of the first value that has some.
    """
    name = field.rpartition(".")[2]
    measured = measure.removeprefix("test.") + (" (%)" if measure in SHARES else "")
    header = [
        f"{measured} at {name} {cell_text(baseline)}",
        *(f"{name} {cell_text(v)} (pairs)" for v in found),
    ]
    lines = {}
    for key in next(iter(found.values())):
        compared = [comparisons_of[key] for comparisons_of in found.values()]
        first = next((c for c in compared if c), None)
        cells = [f"{_difference(c)} ({c.pairs})" if c else "-" for c in compared]
        lines[key] = [f"{first.baseline:.2f}" if first else "-", *cells]
    return _markdown(by_row, header, lines)


def _markdown(
    by_row: Sequence[str], header: Sequence[str], lines: Mapping[tuple[Any, ...], Sequence[str]]
) -> str:
    table = [
        [*(part.rpartition(".")[2] for part in by_row), *header],
        ["---"] * len(by_row) + ["---:"] * len(header),
        *([*map(cell_text, key), *cells] for key, cells in lines.items()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def pair_notes(found: Mapping[tuple[Any, ...], Comparison | None]) -> list[str]:
    """What has to be said below a table of `comparisons`."""
    lines = []
    for key, c in found.items():
        if c and c.left_out:
            lines.append(
                f"{_name(key)}: {c.left_out} seeds left out, of which some value has no run or no "
                "measure."
            )
        if c and c.pairs == 1 and c.candidates > 1:
            lines.append(f"{_name(key)}: chosen by the pair's own validation data, so too high.")
    return lines


def _name(key: tuple[Any, ...]) -> str:
    return " ".join(map(cell_text, key))


def _difference(c: Comparison) -> str:
    return f"{c.difference:+.2f}" + (f" ± {c.t_interval:.2f}" if c.pairs > 1 else "")


def _cells(c: Comparison) -> list[str]:
    counts = [f"{cell_text(value)} ({count})" for value, count in c.chosen.items()]
    if len(c.chosen) == 1:
        counts = [f"{cell_text(value)} ({c.pairs} of {c.pairs})" for value in c.chosen]
    return [
        f"{c.baseline:.2f}",
        ", ".join(counts),
        str(c.candidates),
        f"{c.changed:.2f}",
        _difference(c),
        f"{c.bootstrap[0]:+.2f} to {c.bootstrap[1]:+.2f}" if c.pairs > 1 else "",
        str(c.pairs),
        f"{c.wins}/{c.ties}/{c.losses}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of paired comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", help="folders of a grid, or CSV files")
    parser.add_argument("--field", default="penalty.beta", help="what differs in a pair")
    parser.add_argument("--baseline", type=parse_value, default=0.0)
    values = parser.add_mutually_exclusive_group()
    values.add_argument(
        "--value",
        type=parse_value,
        default=CHOOSE,
        help="compare this value, not the validated one",
    )
    values.add_argument("--each", action="store_true", help="compare each value, side by side")
    parser.add_argument(
        "--measure", default="test.accuracy", help=f"what is compared: {', '.join(RESULTS)}"
    )
    parser.add_argument("--rows", default="sparsity.density", help="fields, separated by commas")
    parser.add_argument("--csv", help="also write every run to this file")
    parser.add_argument("--png", help="also draw the differences to this file")
    options = parser.parse_args(arguments)
    by_row, field, baseline = options.rows.split(","), options.field, options.baseline
    measure = options.measure
    try:
        check_result(measure)
        rows = read_runs(options.paths, [field, *by_row])
        if options.csv:
            write_csv(rows, options.csv)
        compared = partial(comparisons, rows, by_row, field, baseline, measure=measure)
        if options.each:
            others = sorted({row[field] for row in rows} - {baseline}, key=in_order)
            each = {value: compared(value) for value in others}
            found = {(*key, value): c for value, part in each.items() for key, c in part.items()}
        else:
            found = compared(options.value)
        if not any(found.values()):
            there = ", ".join(map(str, sorted({row[field] for row in rows}, key=in_order)))
            another = "another" if options.value is CHOOSE else options.value
            raise ValueError(
                f"there are runs at {field} = {there}: a comparison needs {baseline} and "
                f"{another}, with the same seeds, and {measure} of them."
            )
        if options.each:
            parts = [table_of_each(each, by_row, field, baseline, measure)]
        else:
            parts = [paired_table(found, by_row, field, baseline, measure), *pair_notes(found)]
        print(*parts, *notes(rows, options.paths), sep="\n\n")
        if options.png:
            drawn = {
                f"{_name(key)} ({c.pairs} pairs)": (c.difference, c.t_interval)
                for key, c in found.items()
                if c
            }
            against = f"{field}, against {cell_text(baseline)}"
            write_png(draw_differences(drawn, against, measure), options.png)
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
