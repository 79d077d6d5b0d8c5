"""Lottery tickets: train, prune by magnitude, rewind, and train again (Frankle et al.).

  1. Train the dense network up to the share `rewind` of the run; every round starts from there.
  2. Each round trains to the end of the run under its masks. The next round keeps the largest
     1 - `prune` of the kept weights by |w|, all layers ranked together: density (1 - prune)^n.
     With `score` = "layer-magnitude" it keeps the same share of each layer; with "attentive" too,
     but of the weights that top-down attention from the labels passes through most
     (`sparsity.attentive_scores`).

Sources: the lottery ticket hypothesis (arXiv 1803.03635), and rewinding to an early step instead of
to the initial weights (arXiv 1912.05671). The rewound state is whole: weights, statistics, the
optimizer's slots and the place in the learning-rate schedule.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.data import normalize
from cka_sr_jax.models import stacked_layers
from cka_sr_jax.report import say
from cka_sr_jax.sparsity import (
    Masks,
    apply_masks,
    attentive,
    attentive_scores,
    get_masks,
    masks_from_paths,
    top_k_masks,
    with_masks,
)
from cka_sr_jax.sparsity.attentive import trace_function
from cka_sr_jax.training import loop
from cka_sr_jax.training.build import RunPlan, new_state, state_shapes
from cka_sr_jax.training.checkpoints import newest_intact_step
from cka_sr_jax.training.config import ConfigError, config_errors
from cka_sr_jax.training.evaluation import make_evaluator
from cka_sr_jax.training.methods import DENSE, all_kept_masks, fixed_masks
from cka_sr_jax.training.result import report_run
from cka_sr_jax.training.step import TrainState
from cka_sr_jax.training.stored import load_variables
from cka_sr_jax.training.workdir import check_workdir, read_result, start_workdir, write_json

ATTENDED = 1000  # training examples that top-down attention looks at


class LotteryPlan(NamedTuple):
    """The plan of the dense training, and at which step the rounds start."""

    dense: RunPlan
    rewind_step: int


def prepare(config: ConfigDict) -> LotteryPlan:
    """Build all that the config names and check that it works together; nothing is written.

    Args:
      config: one that `validate` has passed.

    Raises:
      ConfigError: in one sentence, for whatever cannot work.
    """
    if config.sparsity.rule != DENSE:
        raise ConfigError(
            f"lottery.rounds={config.lottery.rounds} makes its own masks and sparsity.rule is "
            f"{config.sparsity.rule!r}: use {DENSE!r}."
        )
    if config.sparsity.rescale:
        raise ConfigError(
            "sparsity.rescale=True has no meaning for lottery tickets, which start dense: leave it "
            "False."
        )
    plan = loop.prepare(config)
    # Every round has masks, the dense one too, so that all states have the same structure.
    kept = partial(all_kept_masks, config.sparsity, model=plan.model)
    masks = jax.eval_shape(kept, state_shapes(plan).params)
    masks = jax.tree.map(lambda mask: jnp.ones(mask.shape, bool), masks)
    rounds = config.lottery.rounds
    if _kept(config, rounds, masks) == 0:
        raise ConfigError(
            f"lottery.rounds={rounds} and lottery.prune={config.lottery.prune} leave none of the "
            f"{_size(masks)} weights: prune less, or in fewer rounds."
        )
    if config.lottery.score == "attentive":
        with config_errors():
            _check_attends(plan)
    rewind_step = round(config.lottery.rewind * plan.steps)
    if rewind_step >= plan.steps:
        raise ConfigError(
            f"lottery.rewind={config.lottery.rewind} leaves no step of the run's {plan.steps} to "
            "train after rewinding: use a smaller share, such as 0.02."
        )
    return LotteryPlan(dataclasses.replace(plan, method=fixed_masks(masks)), rewind_step)


def _check_attends(plan: RunPlan) -> None:
    """Raise ValueError where top-down attention does not pass the plan's model."""
    image = jax.ShapeDtypeStruct((1, *plan.dataset.train_images.shape[1:]), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    state = state_shapes(plan)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    jax.eval_shape(trace_function(plan.model), variables, image, label)


def run(plan: LotteryPlan, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Train `config.lottery.rounds` rounds of pruning after the dense one, each a run in itself.

    `workdir` then holds rewind/, round00/ (dense), round01/, ... and result.json with a row for
    each round. It may be stopped at any time: the same command goes on in the round and at the step
    where it was.

    Raises:
      ConfigError: a round's folder belongs to another config.
      SystemExit: at SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    console, workdir = console or Console(soft_wrap=True), Path(workdir)
    config = plan.dense.config
    check_workdir(config, workdir)
    start_workdir(config, workdir)
    rewound = _train_to_rewind_step(plan, workdir / "rewind", console)
    masks, rows = get_masks(rewound.opt_state), []
    for number in range(config.lottery.rounds + 1):
        if number:
            with config_errors():
                trained = load_variables(workdir / f"round{number - 1:02d}")
                masks = _pruned(plan.dense, trained, masks, number, console)
        folder = workdir / f"round{number:02d}"
        rows.append({"round": number, **_run_round(plan.dense, masks, folder, rewound, console)})
        if diverged := rows[-1].get("diverged"):
            raise ConfigError(
                f"round {number} diverged at step {diverged['step']}, so there is nothing to prune "
                "by: lower optimizer.learning_rate, and use another --workdir."
            )
        say(console, _lines({"rounds": rows})[-1])
    result = {"rounds": rows, "test": rows[-1]["test"], "density": rows[-1]["density"]}
    write_json(workdir / "result.json", result)
    return result


def show_finished(workdir: Path, console: Console) -> dict[str, Any] | None:
    """Print and return the result of tickets that have finished, else None."""
    result = read_result(workdir, _lines, console)
    if result is not None:
        say(console, "\n".join(["These lottery tickets are complete.", *_lines(result)]))
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    return [
        f"Round {row['round']}: density {row['density']:.4f}, test accuracy "
        f"{row['test']['accuracy']:.4f}"
        for row in result["rounds"]
    ]


def _pruned(plan: RunPlan, trained: Any, masks: Masks, number: int, console: Console) -> Masks:
    """The masks of a round, from those of the last one and its trained variables."""
    config = plan.config
    if config.lottery.score == "magnitude":
        return prune_by_magnitude(trained["params"], masks, _kept(config, number, masks))
    weights = trained["params"]
    if config.lottery.score == "attentive":
        say(console, f"Round {number}: attention looks at {ATTENDED} images.")
        images = normalize(jnp.asarray(plan.dataset.train_images[:ATTENDED]), plan.mean, plan.std)
        labels = plan.dataset.train_labels[:ATTENDED]
        scores = attentive_scores(plan.model, trained, images, labels)
    else:
        scores = {path: np.abs(np.asarray(leaf)) for path, leaf in leaf_paths(weights)}
    layers = [f"/{path}" for path, _ in leaf_paths(masks)]
    density = (1 - config.lottery.prune) ** number
    stacked = stacked_layers(plan.model)
    return attentive(weights, scores, density, masks=masks, include=layers, stacked=stacked)


def prune_by_magnitude(weights: Any, masks: Masks, kept: int) -> Masks:
    """The `kept` weights of the masks with the largest |w|, all layers ranked together."""
    values = dict(leaf_paths(weights))
    scores = {path: jnp.abs(values[path]) for path, _ in leaf_paths(masks)}
    return masks_from_paths(weights, top_k_masks(scores, kept, where=dict(leaf_paths(masks))))


def _train_to_rewind_step(plan: LotteryPlan, folder: Path, console: Console) -> TrainState:
    """The state after `rewind_step` dense steps, trained once and kept in `folder`."""
    if plan.rewind_step == 0:
        return new_state(plan.dense)
    config = copy.deepcopy(plan.dense.config)
    config.eval.select = "last"
    config.report.wandb = ""  # W&B has a run for each round
    short = dataclasses.replace(plan.dense, config=config, steps=plan.rewind_step)
    trained = loop.train(short, folder, make_evaluator(short), console)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), trained.last)  # of one device


def _run_round(
    dense: RunPlan, masks: Masks, folder: Path, rewound: TrainState, console: Console
) -> dict[str, Any]:
    """The round's result, trained from the rewound state or read from a finished round."""
    finished = loop.show_finished(folder, Console(quiet=True))
    if finished is not None:
        if "diverged" in finished or newest_intact_step(folder) == dense.steps:
            return finished
        say(console, f"{folder} lacks its last checkpoint, so its training goes on.")

    plan = dataclasses.replace(dense, method=fixed_masks(masks))

    def pruned(plan: RunPlan) -> TrainState:
        return dataclasses.replace(
            rewound,
            params=apply_masks(rewound.params, masks),
            opt_state=with_masks(plan.optimizer, rewound.opt_state, masks),
        )

    evaluator = make_evaluator(plan)
    trained = loop.train(plan, folder, evaluator, console, pruned)
    return report_run(plan, folder, trained, evaluator, console)


def _kept(config: ConfigDict, number: int, masks: Masks) -> int:
    """How many weights a round keeps."""
    return round((1 - config.lottery.prune) ** number * _size(masks))


def _size(masks: Masks) -> int:
    return sum(math.prod(mask.shape) for mask in jax.tree.leaves(masks))
