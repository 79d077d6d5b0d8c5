"""Layer sparsity from a config: fit along a path of strengths, merge layers, refit, compare.

  1. For each strength r, and 0, train the network with `layer_prox(r)`, which sets the negative
     parts of whole layers to 0, and merge the layers that became inactive: the same function.
  2. Refit each merged network: train it again without the layer penalty, once from its weights
     (warm start) and once from fresh ones (cold start); the better on validation data counts.
     Where no layer merged there is no second training: the fitted network itself counts.
  3. Choose on validation data: the shallowest refitted network whose error is within
     `standard_errors` standard errors of the best.
  4. Compare: depth, parameters, multiply-adds, validation and test error, inference time.

The scheme is that of Hebiri and Lederer (arXiv 2006.15604) as recalled, not read; the choice by
standard errors is the usual one for paths (Breiman et al. 1984).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.layer_sparsity import (
    active_layers,
    drop_dead_units,
    merge_layers,
    random_like,
    save_mlp,
    to_mlp_params,
)
from cka_sr_jax.sparsity import RULES, make_rule
from cka_sr_jax.training import ConfigError, create_rule
from cka_sr_jax.training.build import check_workdir
from cka_sr_jax.training.config import validate
from cka_sr_jax.training.recorder import write_json
from cka_sr_jax.workflows.layer_sparsity.fit import (
    Estimate,
    Layers,
    Setup,
    Strengths,
    estimate,
    fit,
    is_finite,
    make_model,
    make_trainer,
)
from cka_sr_jax.workflows.layer_sparsity.tables import (
    Network,
    inference_seconds,
    networks_table,
    path_table,
    print_table,
    to_markdown,
)
from cka_sr_jax.workflows.layer_sparsity.tasks import Task, load_task


class Point(NamedTuple):
    """One strength of the path: its networks, and their errors on validation data.

    The merged network is the fitted one as a function, so they share an error. Where no layer
    merged, `warm` and `cold` are the fitted network too.
    """

    strength: float
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


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Do all that the module says; returns what it writes to `workdir`/result.json.

    The directory then holds config.json, result.json, tables.md, and the chosen network as
    fitted.npz, merged.npz and refitted.npz, which `load_mlp` reads. An interrupted experiment
    starts again from the beginning; one that is complete is left alone.

    Raises:
      ConfigError: the config cannot work, or `workdir` belongs to another one, and nothing is
        written; training diverges without the penalty, and only config.json is.
    """
    console = console or Console(stderr=False)
    setup = prepare(config, Path(workdir))
    result_file = setup.workdir / "result.json"
    if result_file.exists():
        result = json.loads(result_file.read_text())
        console.print("This experiment is complete.")
        _print(result, console, setup.workdir)
        return result
    setup.workdir.mkdir(parents=True, exist_ok=True)
    write_json(setup.workdir / "config.json", config.to_dict())
    start = time.perf_counter()
    path = fit_path(setup, console)
    chosen = choose(path, config.layer_sparsity.standard_errors)
    networks = compare(setup, path[0], chosen)
    result = {
        "chosen_strength": chosen.strength,
        "chosen_merged": chosen.has_merged,
        "chosen_start": chosen.start,
        "error": setup.task.error_name,
        "path": [_path_row(setup, point) for point in path],
        "networks": [network._asdict() for network in networks],
        "inference_batch": min(config.eval.batch_size, len(setup.task.test.inputs)),
        "scaling": setup.task.scaling,
        "steps": setup.steps,
        "seconds": time.perf_counter() - start,
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
    }
    for name in ("fitted", "merged", "refitted"):
        save_mlp(setup.workdir / f"{name}.npz", getattr(chosen, name))
    (setup.workdir / "tables.md").write_text(
        "\n".join(to_markdown(*table(result)) for table in (path_table, networks_table))
    )
    write_json(setup.workdir / "result.json", result)  # last: it says that all is done
    _print(result, console, setup.workdir)
    return result


def prepare(config: ConfigDict, workdir: Path) -> Setup:
    """Check the config and load the data, without writing anything.

    Raises:
      ConfigError: in one sentence, for whatever is wrong with it.
    """
    validate(config, devices=1)
    check_workdir(config, workdir)
    _check(config)
    try:
        task = load_task(config)
        examples = len(task.train.inputs)
        if config.train.batch_size > examples:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size} is more than the {examples} training "
                "examples: lower it."
            )
        steps_per_epoch = examples // config.train.batch_size
        steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
        hidden = tuple(make_model(config, task, **config.model.options).hidden)
        if len(hidden) < (1 if task.nonnegative_input else 2):
            raise ConfigError(
                f"model.options.hidden={hidden} has no layer that can merge: give two hidden "
                "layers or more, or one with inputs that are never negative (data.mean=(0.0,) "
                "and data.std=(1.0,))."
            )
        setup = Setup(config, workdir, task, hidden, steps, steps_per_epoch)
        _, init, step = make_trainer(setup, hidden, create_rule(config.sparsity, steps))
        batch = jax.tree.map(lambda a: a[: config.train.batch_size], task.train)
        jax.eval_shape(step, jax.eval_shape(init), batch)  # finds what only tracing shows
    except ValueError as error:  # each part says in its own words what it cannot work with
        raise ConfigError(str(error)) from error
    return setup


def _check(config: ConfigDict) -> None:
    if not config.layer_sparsity.strengths:
        raise ConfigError(
            "layer_sparsity.strengths is empty, which is an ordinary run: give the path of the "
            "penalty's strengths, for example (0.01, 0.1)."
        )
    if config.model.name != "mlp":
        raise ConfigError(
            f"layer_sparsity merges the layers of an MLP and model.name is {config.model.name!r}: "
            "use 'mlp'."
        )
    available = sorted(RULES.keys() - {"static"})
    if config.sparsity.rule not in available:
        raise ConfigError(
            f"layer_sparsity does not train with sparsity.rule={config.sparsity.rule!r}: use one "
            f"of {', '.join(available)}."
        )
    if config.sparsity.rescale:
        raise ConfigError("layer_sparsity does not rescale: set sparsity.rescale to False.")
    if config.eval.select != "last":
        raise ConfigError(
            f"layer_sparsity takes the weights of the last step and eval.select is "
            f"{config.eval.select!r}: set it to 'last'."
        )
    if config.lottery.rounds:
        raise ConfigError(
            f"layer_sparsity.strengths and lottery.rounds={config.lottery.rounds} are two "
            "experiments: set lottery.rounds to 0, or the strengths to ()."
        )
    if config.data.flip or config.data.pad:
        raise ConfigError(
            "layer_sparsity trains on images as they are: set data.flip to False and data.pad to 0."
        )


def fit_path(setup: Setup, console: Console) -> list[Point]:
    """A point for strength 0 and for each of the config, all from the same initial weights.

    Strength 0 is the network without the penalty. Where no layer merges there is nothing to refit.
    A path ends at the first strength with which training diverges.

    Raises:
      ConfigError: training diverges without the penalty.
    """
    path: list[Point] = []
    for strength in (0.0, *setup.config.layer_sparsity.strengths):
        rule = create_rule(setup.config.sparsity, setup.steps)
        fitted = fit(setup, setup.hidden, rule, strengths=Strengths(layer=strength))
        if not is_finite(fitted):
            if not path:
                raise ConfigError(
                    "training diverges without any layer penalty: lower optimizer.learning_rate."
                )
            console.print(f"strength {strength:g}: training diverged, so the path ends before it.")
            break
        path.append(_refitted_point(setup, strength, fitted, path))
        console.print(_describe(setup.task, path[-1]), highlight=False, soft_wrap=True)
    return path


def _refitted_point(setup: Setup, strength: float, fitted: Layers, path: Sequence[Point]) -> Point:
    """Merge and refit; the cold start is taken from a point of the same architecture, if any."""
    merged = merge_layers(fitted, setup.task.nonnegative_input)
    warm = cold = fitted
    if len(merged) < len(fitted):
        warm = refit(setup, merged)
        same = [point.cold for point in path if _shapes(point.merged) == _shapes(merged)]
        reusable = same and not setup.config.layer_sparsity.refit_keep_zeros
        cold = same[0] if reusable else refit(setup, merged, cold=True)
    errors = [estimate(setup.task, c, setup.task.validation) for c in (fitted, warm, cold)]
    return Point(strength, fitted, merged, warm, cold, *errors)


def _describe(task: Task, point: Point) -> str:
    fitted, warm, cold = (e.mean for e in (point.fitted_error, point.warm_error, point.cold_error))
    start = f"strength {point.strength:g}: {len(point.fitted)} layers"
    error = f"validation {task.error_name} {fitted:.4f}"
    if not point.has_merged:
        return f"{start}, of which none merges; {error}, no refit"
    return (
        f"{start} merge into {len(point.merged)}; {error}, refitted {warm:.4f} (warm start), "
        f"{cold:.4f} (cold start)"
    )


def refit(setup: Setup, merged: Layers, *, cold: bool = False) -> Layers:
    """The merged network trained again without the layer penalty.

    It starts from the merged weights or, `cold`, from fresh ones; the config may ask for connection
    and node sparsity, after which dead units are dropped, and that merged weights of 0 stay 0.
    Where training diverges the start is returned.
    """
    options = setup.config.layer_sparsity
    start = merged
    if cold:
        start = random_like(merged, jax.random.fold_in(jax.random.key(setup.config.seed), 1))
    hidden, params = to_mlp_params(merged)
    rule = make_rule("dense")
    if options.refit_keep_zeros:
        masks = {
            name: {"kernel": jnp.asarray(layer["kernel"]) != 0, "bias": optax.MaskedNode()}
            for name, layer in params.items()
        }
        rule = make_rule("static", masks=masks)
    strengths = Strengths(l1=options.refit_l1, unit=options.refit_row_group)
    refitted = fit(setup, hidden, rule, start=start, strengths=strengths)
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
    return min(near, key=lambda p: (len(p.merged), _multiply_adds(p.merged), p.error.mean))


def compare(setup: Setup, baseline: Point, chosen: Point) -> list[Network]:
    """The networks before and after, measured on test data now that the choice is made."""
    chains: dict[str, Layers] = {
        "no penalty": baseline.fitted,
        "fitted": chosen.fitted,
    }
    if chosen.has_merged:
        chains |= {
            "merged": chosen.merged,
            "refit, warm": chosen.warm,
            "refit, cold": chosen.cold,
        }
    if setup.task.teacher_layers is not None:
        oracle = setup.hidden[:1] * setup.task.teacher_layers
        chains["oracle depth"] = fit(setup, oracle, create_rule(setup.config.sparsity, setup.steps))
    inputs = setup.task.test.inputs[: setup.config.eval.batch_size]
    seconds = inference_seconds(chains, inputs)
    return [
        _measure(setup.task, name, chain, seconds[name], seconds["no penalty"])
        for name, chain in chains.items()
    ]


def _measure(task: Task, name: str, chain: Layers, seconds: float, reference: float) -> Network:
    kernels = [np.asarray(layer.kernel) for layer in chain]
    return Network(
        name=name,
        depth=len(chain),
        active=len(active_layers(chain, nonnegative_input=task.nonnegative_input)),
        hidden=[kernel.shape[1] for kernel in kernels[:-1]],
        parameters=sum(kernel.size + kernel.shape[1] for kernel in kernels),
        multiply_adds=_multiply_adds(chain),
        nonzero_multiply_adds=sum(int(np.count_nonzero(kernel)) for kernel in kernels),
        validation_error=estimate(task, chain, task.validation).mean,
        test_error=estimate(task, chain, task.test).mean,
        microseconds=seconds * 1e6,
        relative_time=seconds / reference,
    )


def _path_row(setup: Setup, point: Point) -> dict[str, Any]:
    """The errors of the refit are None where no layer merged."""
    warm, cold = point.warm_error.mean, point.cold_error.mean
    return {
        "strength": point.strength,
        "active": list(active_layers(point.fitted, nonnegative_input=setup.task.nonnegative_input)),
        "depth": len(point.merged),
        "multiply_adds": _multiply_adds(point.merged),
        "validation_error": point.fitted_error.mean,
        "warm_validation_error": warm if point.has_merged else None,
        "cold_validation_error": cold if point.has_merged else None,
        "standard_error": point.error.standard_error,
    }


def _multiply_adds(chain: Layers) -> int:
    """Of one example, zeros included: what dense hardware computes."""
    return sum(math.prod(layer.kernel.shape) for layer in chain)


def _shapes(chain: Layers) -> list[tuple[int, ...]]:
    return [layer.kernel.shape for layer in chain]


def _print(result: Mapping[str, Any], console: Console, workdir: Path) -> None:
    for table in (path_table, networks_table):
        print_table(*table(result), console)
    if not result["chosen_merged"]:
        console.print(
            "No layer of the chosen network merged, so the three networks are one: raise "
            "layer_sparsity.strengths, train longer, or allow a larger validation error with "
            "layer_sparsity.standard_errors.",
            soft_wrap=True,
        )
    console.print(f"Tables, networks and result.json: {workdir}", soft_wrap=True, highlight=False)
