"""Lottery tickets from a config: train, prune by magnitude, rewind, and again (Frankle et al.).

  1. Train the dense network for the share `rewind` of the run. Each round starts from that state.
  2. Each round trains to the end of the run under its masks, and the next one keeps the largest
     1 - `prune` of its kept weights by |w|, all layers ranked together: density (1 - prune)^n.

Sources: the lottery ticket hypothesis (arXiv 1803.03635), and rewinding to an early step instead of
to the initial weights (arXiv 1912.05671). The rewound state is whole: weights, statistics, the
optimizer's slots and the place in the learning-rate schedule.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity import Masks, apply_masks, get_masks, static
from cka_sr_jax.sparsity.gradual import all_kept
from cka_sr_jax.sparsity.masks import masks_from_paths
from cka_sr_jax.sparsity.rule import maskable_shapes
from cka_sr_jax.sparsity.selection import top_k_masks
from cka_sr_jax.sparsity.sparsify import with_masks
from cka_sr_jax.training import ConfigError, TrainState, load_variables, loop
from cka_sr_jax.training.build import Experiment
from cka_sr_jax.training.build import prepare as prepare_run
from cka_sr_jax.training.optimizer import create_optimizer
from cka_sr_jax.training.recorder import write_json


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Train `config.lottery.rounds` rounds of pruning after the dense one, each a run of its own.

    `workdir` then holds rewind/, round00/ (dense), round01/, ... and result.json with a row for
    each round. It may be stopped at any time: the same command goes on in the round and at the step
    where it was.

    Raises:
      ConfigError: the config cannot work; nothing is written.
    """
    console = console or Console(soft_wrap=True)
    workdir = Path(workdir)
    start = prepare(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    rewound = _train_to_rewind_step(start, workdir / "rewind", console)
    masks, rows = get_masks(rewound.opt_state), []
    for number in range(config.lottery.rounds + 1):
        folder = workdir / f"round{number:02d}"
        if number:
            kept = round((1 - config.lottery.prune) ** number * _size(masks))
            weights = load_variables(workdir / f"round{number - 1:02d}")["params"]
            masks = prune_by_magnitude(weights, masks, kept)
        rows.append({"round": number, **_run_round(config, folder, masks, rewound, console)})
        console.print(
            f"Round {number}: density {rows[-1]['density']:.4f}, test accuracy "
            f"{rows[-1]['test']['accuracy']:.4f}",
            highlight=False,
        )
    result = {"rounds": rows, "test": rows[-1]["test"], "density": rows[-1]["density"]}
    write_json(workdir / "result.json", result)
    return result


def prepare(config: ConfigDict, workdir: Path) -> Experiment:
    """Check the config, without writing anything.

    Raises:
      ConfigError: in one sentence, for whatever is wrong with it.
    """
    if config.sparsity.rule != "dense":
        raise ConfigError(
            f"lottery.rounds={config.lottery.rounds} finds its masks itself and sparsity.rule is "
            f"{config.sparsity.rule!r}: use 'dense'."
        )
    if not 0 < config.lottery.prune < 1:
        raise ConfigError(
            f"lottery.prune={config.lottery.prune} is not in (0, 1): it is the share of the "
            "remaining weights that each round prunes, for example 0.2."
        )
    if config.sparsity.rescale:
        raise ConfigError(
            "sparsity.rescale=True has no meaning for lottery tickets, which start dense: leave it "
            "False."
        )
    experiment = prepare_run(config, workdir)
    if not 0 <= round(config.lottery.rewind * experiment.steps) < experiment.steps:
        raise ConfigError(
            f"lottery.rewind={config.lottery.rewind} leaves no step of the run's "
            f"{experiment.steps} to train after rewinding: use a smaller share, such as 0.02."
        )
    # Every round has masks, the dense one too, so that all states have the same structure.
    params = experiment.state.params
    shapes = maskable_shapes(params, config.sparsity.exclude)
    return prepare_run(config, workdir, static(all_kept(params, shapes)))


def prune_by_magnitude(weights: Any, masks: Masks, kept: int) -> Masks:
    """The `kept` weights of the masks with the largest |w|, all layers ranked together."""
    values = dict(leaf_paths(weights))
    scores = {path: jnp.abs(values[path]) for path, _ in leaf_paths(masks)}
    return masks_from_paths(weights, top_k_masks(scores, kept, where=dict(leaf_paths(masks))))


def _train_to_rewind_step(start: Experiment, folder: Path, console: Console) -> TrainState:
    """The dense state at the rewind point, trained once and kept in `folder`."""
    steps = round(start.config.lottery.rewind * start.steps)
    if steps == 0:
        return start.state
    config = copy.deepcopy(start.config)
    config.eval.select = "last"
    state, *_ = loop.train(start._replace(config=config, steps=steps, workdir=folder), console)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)  # of one device


def _run_round(
    config: ConfigDict, folder: Path, masks: Masks, rewound: TrainState, console: Console
) -> dict[str, Any]:
    """The round's result, trained from the rewound state or read from a finished round."""
    result_file = folder / "result.json"
    if result_file.exists() and (folder / "report" / "index.html").exists():
        return json.loads(result_file.read_text())
    experiment = prepare_run(config, folder, static(masks))
    inner = create_optimizer(config.optimizer, experiment.schedule)
    state = dataclasses.replace(
        rewound,
        params=apply_masks(rewound.params, masks),
        opt_state=with_masks(inner, rewound.opt_state, masks),
    )
    trained = loop.train(experiment._replace(state=state), console)
    return loop.finish(experiment, *trained, console)


def _size(masks: Masks) -> int:
    return sum(math.prod(mask.shape) for mask in jax.tree.leaves(masks))
