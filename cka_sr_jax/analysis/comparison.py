"""Paired comparisons: the same seed, initial weights, masks and data with and without a change.

Each seed's network is compared with the baseline's at the value of the field that has the best
mean validation accuracy over the OTHER seeds. If each seed chose its value by its own networks,
the value would be the one whose networks happen to be good, and the gain would be too high: for a
field that does nothing, by 0.25 to 0.5 standard deviations of a run, with 2 or 3 values and 3 to 5
seeds. The test set has no say in the choice. Seeds that choose for each other are not quite
independent pairs, though: see `choose_and_compare`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cka_sr_jax.analysis.commands import check_alike, in_order
from cka_sr_jax.analysis.rows import SHARES, Row

BOOTSTRAP_SAMPLES = 10_000
CHOOSE = object()  # stands for "choose a value"; None is itself a value, the rule's default


class MeanDifference(NamedTuple):
    """Mean of paired differences with two 95 % confidence intervals.

    Attributes:
      mean: over the pairs.
      t_interval: half-width of the interval by Student's t; NaN for one pair.
      bootstrap: (low, high), percentiles over resampled pairs; too narrow for few pairs, see
        `compare`.
    """

    mean: float
    t_interval: float
    bootstrap: tuple[float, float]


class Comparison(NamedTuple):
    """Values of the field against the baseline, over the seeds that all values have.

    Attributes:
      chosen: {value: number of seeds that it was chosen for}. A seed's value is chosen by the other
        seeds' validation accuracy; a single seed chooses by its own, and its difference is too high
        on average.
      candidates: the number of values to choose from.
      pairs: the number of seeds compared.
      left_out: the number of seeds for which the baseline or some value has no run, or a run
        without the measure.
      baseline, changed: mean of the measure for each; shares and accuracies in percent.
      difference: mean of changed - baseline over the pairs.
      t_interval, bootstrap: its intervals, as in `MeanDifference`. Where the differences spread by
        less than one test image, that image takes the place of their deviation in the t interval;
        both are NaN where its size is unknown and all differences of an accuracy are equal.
      coarse: whether that is so.
      test_images: their number; None: unknown, or another measure than test.accuracy.
      wins, ties, losses: the number of pairs with a positive, zero and negative difference.
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
    coarse: bool
    test_images: int | None
    wins: int
    ties: int
    losses: int


def compare(
    differences: Sequence[float] | np.ndarray, least_deviation: float = 0.0
) -> MeanDifference:
    """Mean of paired differences, its 95 % t interval and its 95 % bootstrap interval.

    The bootstrap resamples pairs 10,000 times with a fixed seed and takes percentiles. With few
    pairs its interval is too narrow: it covers about 76 % instead of 95 % with 3 normally
    distributed pairs, and 84 % with 5. Trust the t interval there.

    Args:
      differences: one for each pair.
      least_deviation: what the deviation of the differences counts as in the t interval where it
        is smaller.

    Raises:
      ValueError: no differences.
    """
    values = np.asarray(differences, float)
    if not values.size:
        raise ValueError("there are no pairs to compare: run both values with the same seeds.")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return MeanDifference(mean, math.nan, (math.nan, math.nan))
    deviation = max(float(values.std(ddof=1)), least_deviation)
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, n, (BOOTSTRAP_SAMPLES, n))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return MeanDifference(mean, t_half_width(deviation, n), (float(low), float(high)))


def t_half_width(deviation: float, pairs: int) -> float:
    """Half-width of the 95 % t interval: t_{0.975, pairs - 1} deviation / sqrt(pairs)."""
    return float(stats.t.ppf(0.975, pairs - 1) * deviation / math.sqrt(pairs))


def pairs_needed(deviation: float, gain: float) -> int:
    """The fewest pairs, at least 2, whose 95 % t interval is no wider than +-gain, above 0.

    With fewer, a mean difference of this size cannot be told from 0.

    >>> pairs_needed(deviation=1.0, gain=1.0), pairs_needed(deviation=1.0, gain=0.5)
    (7, 18)
    """
    # From the normal distribution's number, which is a little smaller.
    start = max(2, math.floor((stats.norm.ppf(0.975) * deviation / gain) ** 2))
    return next(n for n in itertools.count(start) if t_half_width(deviation, n) <= gain)


def choose_and_compare(
    rows: Sequence[Row],
    field: str,
    baseline: Any,
    value: Any = CHOOSE,
    measure: str = "test.accuracy",
) -> Comparison | None:
    """The values of `field` that validation data choose against the baseline, pair by pair.

    With several values to choose from, the intervals of the difference are too narrow, because
    each seed's networks have a say in the choice for the other seeds. Suppose that the field does
    nothing and that each network's test accuracy equals its validation accuracy. Then the 95 % t
    interval of the best of three covers 0 in 93 % of grids with 3 seeds, in 92 % with 5 and in 86 %
    with 20; with 5 seeds and a baseline whose runs do not scatter at all, in 88 %. Coverage rises
    as validation and test accuracy decorrelate. The intervals of a single `value` are exact for
    normal differences.

    Args:
      rows: of `read_runs`; they differ in `field` and "seed" alone.
      field: such as "penalty.beta".
      baseline: the value of the field to compare with.
      value: the value to compare; CHOOSE: for each seed the value that the other seeds choose.
      measure: the name in RESULTS that is compared. A seed is left out if one of its runs has no
        such figure, for example because it diverged.

    Returns:
      None if there is nothing to compare yet: the baseline or all other values are missing, or no
      seed has the measure at each of them.

    Raises:
      ValueError: there are values to choose from and a run has no validation accuracy; runs differ
        in more than `field` and seed.
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

    choice = np.zeros(len(seeds), int)  # each seed's index into `others`
    if len(others) > 1:
        choice = choose_by_others(np.array([measured(v, "validation.accuracy") for v in others]))
    scale = 100 if measure in SHARES else 1
    changed = scale * np.array([measured(v, measure) for v in others])
    changed = changed[choice, np.arange(len(seeds))]
    unchanged = scale * measured(baseline, measure)
    differences = changed - unchanged
    accuracy = measure.endswith("accuracy")
    images = _test_images(rows) if measure == "test.accuracy" else None
    image = scale / images if images else 0.0
    # Accuracies are multiples of an image: 1e-9 is rounding.
    coarse = accuracy and len(seeds) > 1 and differences.std(ddof=1) < max(image * (1 - 1e-6), 1e-9)
    mean = compare(differences, least_deviation=image if coarse else 0.0)
    if coarse:
        t_interval = mean.t_interval if images else math.nan
        mean = mean._replace(t_interval=t_interval, bootstrap=(math.nan, math.nan))
    return Comparison(
        chosen=dict(Counter(others[i] for i in choice).most_common()),
        candidates=len(others),
        pairs=len(seeds),
        left_out=len(set.union(*seeds_of)) - len(seeds),
        baseline=float(unchanged.mean()),
        changed=float(changed.mean()),
        difference=mean.mean,
        t_interval=mean.t_interval,
        bootstrap=mean.bootstrap,
        coarse=bool(coarse),
        test_images=images,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _test_images(rows: Sequence[Row]) -> int | None:
    """How many test images the runs have; None where some run does not say."""
    counts = {row.get("test.images") for row in rows}
    count = counts.pop()
    return int(count) if count and not counts else None


def choose_by_others(validation: np.ndarray) -> np.ndarray:
    """For each seed, the candidate with the best mean over the other seeds.

    A single seed has its own best candidate.

    Args:
      validation: accuracies [candidates, seeds].

    Returns:
      The candidates' indices [seeds]; of equal candidates the first.
    """
    seeds = validation.shape[1]
    if seeds == 1:
        return validation.argmax(axis=0)
    others = (np.delete(validation, i, axis=1) for i in range(seeds))
    # Rounded, since equal counts of correct images differ in the last bit by the order of the sum.
    return np.array([values.mean(axis=1).round(9).argmax() for values in others])


def comparisons(
    rows: Sequence[Row],
    by_row: Sequence[str],
    field: str,
    baseline: Any,
    value: Any = CHOOSE,
    measure: str = "test.accuracy",
) -> dict[tuple[Any, ...], Comparison | None]:
    """{values of the `by_row` fields: `choose_and_compare` of the rows that have them}."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(name) for name in by_row)].append(row)
    ordered = sorted(groups.items(), key=lambda item: [*map(in_order, item[0])])
    return {key: choose_and_compare(g, field, baseline, value, measure) for key, g in ordered}
