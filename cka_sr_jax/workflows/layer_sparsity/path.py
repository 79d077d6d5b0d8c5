"""The path of a layer-sparsity experiment: networks of fewer and fewer layers, and the choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from cka_sr_jax.layer_sparsity import (
    active_layers,
    cka_without_layers,
    drop_dead_units,
    layer_entropies,
    merge_layers,
    random_like,
    remove_activation,
    to_mlp_params,
)
from cka_sr_jax.report import say
from cka_sr_jax.training.config import ConfigError
from cka_sr_jax.training.methods import fixed_masks
from cka_sr_jax.workflows.layer_sparsity.fit import (
    Estimate,
    Layers,
    Strengths,
    estimate,
    fit,
    is_finite,
)
from cka_sr_jax.workflows.layer_sparsity.plan import PathPlan
from cka_sr_jax.workflows.layer_sparsity.tasks import Task

SCORED_EXAMPLES = 1000  # on which layers are scored


class Point(NamedTuple):
    """One point of the path: its networks, and their errors on validation data.

    Where no layer merged, `merged`, `warm` and `cold` are the fitted network too.

    Attributes:
      strength: of the layer penalty; 0 with a score.
      active: the hidden layers of the whole network whose ReLU counts in the merged one.
      fitted: the network before layers merged; with a score, the last point's warm refit.
      merged: the same function with a penalty, another with a score, as a ReLU is gone.
      fitted_error: of the merged network, before its refits.
    """

    strength: float
    active: tuple[int, ...]
    fitted: Layers
    merged: Layers
    warm: Layers
    cold: Layers
    fitted_error: Estimate
    warm_error: Estimate
    cold_error: Estimate

    @property
    def has_merged(self) -> bool:
        """Whether there is a shallower network, and so a refit."""
        return len(self.merged) < len(self.fitted)

    @property
    def start(self) -> str:
        """Which start gave the better refit, "warm" or "cold"; "" where no layer merged."""
        better = "warm" if self.warm_error.mean <= self.cold_error.mean else "cold"
        return better if self.has_merged else ""

    @property
    def refitted(self) -> Layers:
        """The better of the two refitted networks."""
        return self.cold if self.start == "cold" else self.warm

    @property
    def error(self) -> Estimate:
        """That of `refitted`."""
        return min(self.warm_error, self.cold_error, key=lambda error: error.mean)


def fit_path(plan: PathPlan, console: Console) -> list[Point]:
    """The network as it is, and then with fewer and fewer layers, by the penalty or by a score.

    Raises:
      ConfigError: training diverges without the penalty.
    """
    path: list[Point] = []
    fitted = fit(plan, plan.hidden)
    if not is_finite(fitted):
        raise ConfigError(
            "training diverges without any layer penalty: lower optimizer.learning_rate."
        )
    steps = _by_score(plan, fitted, path, console)
    if plan.config.layer_sparsity.score == "none":
        steps = _by_penalty(plan, fitted, console)
    for step in steps:
        path.append(_refitted_point(plan, *step, path))
        say(console, _describe(plan.task, path[-1]))
    return path


class _Step(NamedTuple):
    """What a point starts from; the fields are those of `Point`."""

    strength: float
    active: tuple[int, ...]
    fitted: Layers
    merged: Layers


def _by_penalty(plan: PathPlan, fitted: Layers, console: Console) -> Iterator[_Step]:
    """Strength 0 and each of the config, all from the same initial weights.

    Where no layer merges there is nothing to refit. The path ends at the first strength with which
    training diverges.
    """
    nonnegative = plan.task.nonnegative_input
    for strength in (0.0, *plan.config.layer_sparsity.strengths):
        if strength:
            fitted = fit(plan, plan.hidden, strengths=Strengths(layer=strength))
        if not is_finite(fitted):
            say(console, f"strength {strength:g}: training diverged, so the path ends before it.")
            return
        active = active_layers(fitted, nonnegative_input=nonnegative)
        yield _Step(strength, active, fitted, merge_layers(fitted, nonnegative))


def _by_score(
    plan: PathPlan, fitted: Layers, path: Sequence[Point], console: Console
) -> Iterator[_Step]:
    """The whole network, and with one ReLU layer fewer each time, down to one hidden layer.

    The layer of the lowest score in the last point's warm refit goes; it is scored on training
    examples.
    """
    score = {"entropy": layer_entropies, "cka": cka_without_layers}[
        plan.config.layer_sparsity.score
    ]
    active = list(range(len(fitted) - 1))
    yield _Step(0.0, tuple(active), fitted, fitted)
    inputs = plan.task.train.inputs[:SCORED_EXAMPLES]
    while len(active) > 1:
        chain = path[-1].warm
        if not is_finite(chain):
            say(console, "The merged weights are beyond float32, so the path ends here.")
            return
        layer = int(np.argmin(score(chain, inputs)))
        del active[layer]
        yield _Step(0.0, tuple(active), chain, remove_activation(chain, layer))


def _refitted_point(
    plan: PathPlan,
    strength: float,
    active: tuple[int, ...],
    fitted: Layers,
    merged: Layers,
    path: Sequence[Point],
) -> Point:
    """The refits; the cold start is taken from a point of the same architecture, if any."""
    warm = cold = fitted
    if len(merged) < len(fitted):
        warm = refit(plan, merged)
        same = [point.cold for point in path if _shapes(point.merged) == _shapes(merged)]
        reusable = same and not plan.config.layer_sparsity.refit_keep_zeros
        cold = same[0] if reusable else refit(plan, merged, cold=True)
    errors = [estimate(plan.task, c, plan.task.validation) for c in (merged, warm, cold)]
    return Point(strength, active, fitted, merged, warm, cold, *errors)


def _describe(task: Task, point: Point) -> str:
    fitted, warm, cold = (e.mean for e in (point.fitted_error, point.warm_error, point.cold_error))
    start = f"strength {point.strength:g}: " if point.strength else ""
    start += f"{len(point.fitted)} layers"
    error = f"validation {task.error_name} {fitted:.4f}"
    if not point.has_merged:
        return f"{start}, of which none merges; {error}, no refit"
    return (
        f"{start} merge into {len(point.merged)}; {error}, refitted {warm:.4f} (warm start), "
        f"{cold:.4f} (cold start)"
    )


def refit(plan: PathPlan, merged: Layers, *, cold: bool = False) -> Layers:
    """The merged network trained again without the layer penalty.

    It starts from the merged weights or, `cold`, from fresh ones; the config may ask for connection
    and node sparsity, after which dead units are dropped, and that merged weights of 0 stay 0.
    Where training diverges the start is returned.
    """
    options = plan.config.layer_sparsity
    start = merged
    if cold:
        start = random_like(merged, jax.random.fold_in(jax.random.key(plan.config.seed), 1))
    hidden, params = to_mlp_params(merged)
    masks: Any = jax.tree.map(lambda _: optax.MaskedNode(), params)
    if options.refit_keep_zeros:
        masks = {
            name: {"kernel": jnp.asarray(layer["kernel"]) != 0, "bias": optax.MaskedNode()}
            for name, layer in params.items()
        }
    strengths = Strengths(l1=options.refit_l1, unit=options.refit_row_group)
    refitted = fit(plan, hidden, start=start, strengths=strengths, method=fixed_masks(masks))
    if not is_finite(refitted):
        return start
    return drop_dead_units(refitted) if any(strengths) else refitted


def choose(path: Sequence[Point], standard_errors: float) -> Point:
    """The shallowest point whose refitted network is nearly as good as the best, on validation.

    Nearly: its error is at most the best one + `standard_errors` of the best one's standard
    errors. Of equally deep points the one of fewer multiply-adds, then of the smaller error.
    """
    best = min((point.error for point in path), key=lambda error: error.mean)
    limit = best.mean + standard_errors * best.standard_error
    near = [point for point in path if point.error.mean <= limit]
    return min(near, key=lambda p: (len(p.merged), multiply_adds(p.merged), p.error.mean))


def multiply_adds(chain: Layers) -> int:
    """Of one example, zeros included: what dense hardware computes."""
    return sum(math.prod(layer.kernel.shape) for layer in chain)


def _shapes(chain: Layers) -> list[tuple[int, ...]]:
    return [layer.kernel.shape for layer in chain]
