"""The end of a run: its weights measured on test data, result.json and the report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from cka_sr_jax.accounting import total_row
from cka_sr_jax.report import console_table, say, write_report
from cka_sr_jax.report.watch import WeightsAndBiases
from cka_sr_jax.sparsity import epsilon_sparsity
from cka_sr_jax.training.build import RunPlan
from cka_sr_jax.training.evaluation import EPSILONS, Evaluator, mean_outlier_share, stage_means
from cka_sr_jax.training.hosts import is_first
from cka_sr_jax.training.recorder import Divergence
from cka_sr_jax.training.selection import Selected
from cka_sr_jax.training.step import TrainState
from cka_sr_jax.training.workdir import finite, write_json


class TrainResult(NamedTuple):
    """What training ends with.

    Attributes:
      last: the state after the last step.
      selected: the state that the run reports, and how it was selected.
      seconds: of training.
      flops: of training.
      diverged: where a number stopped being finite, which ended the training.
      data_wait: share of the time since the run was last started for which the devices waited for
        data; None of a set in memory.
      wandb: the W&B run, still open; `report_run` shows the result there and closes it.
    """

    last: TrainState
    selected: Selected
    seconds: float
    flops: float
    diverged: Divergence | None = None
    data_wait: float | None = None
    wandb: WeightsAndBiases | None = None


def report_run(
    plan: RunPlan, workdir: Path, trained: TrainResult, evaluator: Evaluator, console: Console
) -> dict[str, Any]:
    """Measure the selected weights, write the report and result.json, and print where they are.

    This is the one place that reads the test set, but for runs that select on it.
    """
    state, features = trained.selected.state, evaluator.features
    matrix = evaluator.cka(state)
    rows = evaluator.layer_rows(state)
    result = finite(_measure(plan, trained, evaluator) | stage_means(matrix, features))
    if not is_first():
        return result
    report = write_report(
        workdir,
        result=result,
        layers=rows,
        cka_matrix=matrix,
        feature_names=evaluator.feature_names,
        feature_groups=evaluator.feature_groups,
    )
    write_json(workdir / "result.json", result)  # last: it says that the run has finished
    console.print(console_table(rows))
    waited = trained.data_wait  # of this start alone
    share = "" if waited is None else f"; since it started, {waited:.1%} of the time was for data"
    say(
        console,
        f"Test accuracy {result['test']['accuracy']:.4f}, density {result['density']:.4f}, "
        f"{trained.seconds:.1f} s of training{share}.",
    )
    if trained.diverged is not None:
        say(console, _describe(trained.diverged))
    elif result["test"]["loss"] is None:
        say(console, "This run diverged: its loss on test images is NaN or infinite.")
    say(console, f"Report: {report}")
    if trained.wandb:  # last, since it may wait for a network
        trained.wandb.finish(result, report.parent / "cka_heatmap.png")
    return result


def _describe(diverged: Divergence) -> str:
    """One line: what happened, what was before it, and what can be done."""
    line = (
        f"This run diverged: at step {diverged.step} its loss, a gradient or a new weight was not "
        "finite"
    )
    if diverged.before is not None:
        line += f"; the loss of the step before was {diverged.before['loss']:.4g}"
    if diverged.checkpoint is not None:
        line += f", and the checkpoint of step {diverged.checkpoint} is intact"
    return f"{line}. A lower optimizer.learning_rate, or train.not_finite=skip, may help."


@partial(jax.jit, static_argnums=1)
def _epsilon_shares(weights: Any, stacked: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    return {f"{e:g}": epsilon_sparsity(weights, e, stacked=dict(stacked)) for e in EPSILONS}


def _measure(plan: RunPlan, trained: TrainResult, evaluator: Evaluator) -> dict[str, Any]:
    dataset, selected, state = plan.dataset, trained.selected, trained.selected.state
    test = evaluator.accuracy(state, dataset.test_images, dataset.test_labels)
    validation = None
    if len(dataset.validation_labels):
        validation = evaluator.accuracy(state, dataset.validation_images, dataset.validation_labels)
    sparsity, total = evaluator.sparsity(state).total, total_row(evaluator.layer_rows(state))
    weights = plan.method.weights(jax.device_get(state.params))
    stacked = tuple(evaluator.stacked.items())
    return {
        "test": {
            **test,
            "images": len(dataset.test_labels),
            "selected": selected.how,
            "step": selected.step,
        },
        "validation": validation,
        **{name: value for name, value in sparsity.items() if name != "flops"},
        "parameters": total.parameters,
        "parameters_kept": total.kept,
        "flops": total.flops,
        "flops_dense": total.flops_dense,
        "training_flops": trained.flops,
        "outlier_share": mean_outlier_share(plan, state),
        "effective_rank": evaluator.ranks(state),
        "epsilon_sparsity": jax.tree.map(float, _epsilon_shares(weights, stacked)),
        **({"diverged": trained.diverged._asdict()} if trained.diverged else {}),
        **({} if trained.data_wait is None else {"data_wait": trained.data_wait}),
        "steps": plan.steps,
        "epochs": plan.steps / plan.steps_per_epoch,
        "wall_seconds": trained.seconds,
        "devices": f"{len(plan.devices)} x {plan.devices[0].device_kind}",
        "jax": jax.__version__,
    }
