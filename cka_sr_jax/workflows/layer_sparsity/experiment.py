"""Layer sparsity from a config: fit along a path of strengths, merge layers, refit, compare.

  1. For each strength r, and 0, train the network with `layer_prox(r)`, which sets the negative
     parts of whole layers to 0, and merge the layers that became inactive: the same function.
  2. Refit each merged network: train it again without the layer penalty, once from its weights
     (warm start) and once from fresh ones (cold start); the better on validation data counts.
     Where no layer merged there is no second training: the fitted network itself counts.
     With `layer_sparsity.score` there is no penalty: the ReLU layer of the lowest score merges, the
     network is refitted, and so on from the warm refit.
  3. Choose on validation data: the shallowest refitted network whose error is within
     `standard_errors` standard errors of the best.
  4. Compare: depth, parameters, multiply-adds, validation and test error, inference time.

The scheme is that of Hebiri and Lederer (arXiv 2006.15604) as recalled, not read; the choice by
standard errors is the usual one for paths (Breiman et al. 1984).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.layer_sparsity import save_mlp
from cka_sr_jax.report import say
from cka_sr_jax.training.config import config_errors
from cka_sr_jax.training.workdir import check_workdir, read_result, start_workdir, write_json
from cka_sr_jax.workflows.layer_sparsity.compare import compare
from cka_sr_jax.workflows.layer_sparsity.fit import make_trainer
from cka_sr_jax.workflows.layer_sparsity.path import Point, choose, fit_path, multiply_adds
from cka_sr_jax.workflows.layer_sparsity.plan import PathPlan, build_plan
from cka_sr_jax.workflows.layer_sparsity.tables import (
    networks_table,
    path_table,
    print_table,
    to_markdown,
)


def prepare(config: ConfigDict) -> PathPlan:
    """Load the data and check that all the config names works together; nothing is written.

    Args:
      config: one that `validate` has passed.

    Raises:
      ConfigError: in one sentence, for whatever cannot work.
    """
    with config_errors():
        plan = build_plan(config)
        _trace(plan)
        return plan


def _trace(plan: PathPlan) -> None:
    """Trace a step, which finds what shows only there."""
    trainer, train = make_trainer(plan, plan.hidden), plan.task.train
    batch = {"image": train.inputs, "label": train.targets}
    batch = jax.tree.map(lambda a: a[: plan.config.train.batch_size], batch)
    jax.eval_shape(lambda: trainer.step(trainer.first_state(None), batch))


def run(plan: PathPlan, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Fit, merge, refit, choose and compare; returns what it writes to `workdir`/result.json.

    The directory then holds config.json, result.json, tables.md, and the chosen network as
    fitted.npz, merged.npz and refitted.npz, which `load_mlp` reads. An experiment that was
    interrupted starts again from the beginning.

    Raises:
      ConfigError: training diverges without the penalty; only config.json is written.
    """
    console, workdir = console or Console(stderr=False), Path(workdir)
    check_workdir(plan.config, workdir)
    start_workdir(plan.config, workdir)
    start = time.perf_counter()
    path = fit_path(plan, console)
    chosen = choose(path, plan.config.layer_sparsity.standard_errors)
    networks = compare(plan, path[0], chosen)
    result = {
        "score": plan.config.layer_sparsity.score,
        "chosen_strength": chosen.strength,
        "chosen_merged": chosen.has_merged,
        "chosen_start": chosen.start,
        "error": plan.task.error_name,
        "path": [_path_row(point, chosen) for point in path],
        "networks": [network._asdict() for network in networks],
        "inference_batch": min(plan.config.eval.batch_size, len(plan.task.test.inputs)),
        "scaling": plan.task.scaling,
        "steps": plan.steps,
        "seconds": time.perf_counter() - start,
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
    }
    for name in ("fitted", "merged", "refitted"):
        save_mlp(workdir / f"{name}.npz", getattr(chosen, name))
    (workdir / "tables.md").write_text(
        "\n".join(to_markdown(table(result)) for table in (path_table, networks_table))
    )
    write_json(workdir / "result.json", result)  # last: it says that all is done
    _print(result, workdir, console)
    return result


def show_finished(workdir: Path, console: Console) -> dict[str, Any] | None:
    """Print and return the result of an experiment that has finished, else None."""
    result = read_result(workdir, _tables, console)
    if result is not None:
        say(console, "This experiment is complete.")
        _print(result, workdir, console)
    return result


def _path_row(point: Point, chosen: Point) -> dict[str, Any]:
    """The errors of the refit are None where no layer merged."""
    warm, cold = point.warm_error.mean, point.cold_error.mean
    return {
        "strength": point.strength,
        "chosen": point is chosen,
        "active": list(point.active),
        "depth": len(point.merged),
        "multiply_adds": multiply_adds(point.merged),
        "validation_error": point.fitted_error.mean,
        "warm_validation_error": warm if point.has_merged else None,
        "cold_validation_error": cold if point.has_merged else None,
        "standard_error": point.error.standard_error,
    }


def _tables(result: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """The result's tables, and whether layers of the chosen network merged."""
    return [path_table(result), networks_table(result)], bool(result["chosen_merged"])


def _print(result: Mapping[str, Any], workdir: Path, console: Console) -> None:
    tables, has_merged = _tables(result)
    for table in tables:
        print_table(table, console)
    if not has_merged:
        say(
            console,
            "No layer of the chosen network merged, so the three networks are one: raise "
            "layer_sparsity.strengths if it has any, train longer, or allow a larger validation "
            "error with layer_sparsity.standard_errors.",
        )
    say(console, f"Tables, networks and result.json: {workdir}")
