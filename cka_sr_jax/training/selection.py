"""Which weights a run reports: the last ones, or those of the best evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from cka_sr_jax.data import Images, Labels
from cka_sr_jax.sparsity import get_masks
from cka_sr_jax.training.build import RunPlan
from cka_sr_jax.training.parallel import replicate
from cka_sr_jax.training.step import TrainState


class Best(NamedTuple):
    """The weights of the best evaluation so far, on the host.

    Attributes:
      accuracy: -1 before the first evaluation.
    """

    accuracy: Any
    step: Any
    params: Any
    batch_stats: Any
    masks: Any


class SelectionImages(NamedTuple):
    """Images to evaluate on, and the name of their split."""

    split: str
    images: Images
    labels: Labels


def nothing_yet(plan: RunPlan, state: TrainState) -> Best | None:
    """Where selection starts; None where the run reports its last weights."""
    if plan.config.eval.select == "last":
        return None
    masks = get_masks(state.opt_state)
    return Best(np.array(-1.0), np.array(0, np.int32), state.params, state.batch_stats, masks)


def better_of(best: Best | None, accuracy: float, state: TrainState) -> Best | None:
    """`best` or, where this accuracy is higher, a host copy of the state's weights."""
    if best is None or accuracy <= best.accuracy:
        return best
    weights = (state.params, state.batch_stats, get_masks(state.opt_state))
    return Best(np.array(accuracy), np.asarray(state.step), *jax.device_get(weights))


def selection_images(plan: RunPlan) -> SelectionImages:
    """What the run is evaluated on as it goes: validation images, unless the config says test."""
    data = plan.dataset
    if plan.config.eval.select == "best-test":
        return SelectionImages("test-selection", data.test_images, data.test_labels)
    return SelectionImages("validation", data.validation_images, data.validation_labels)


class Selected(NamedTuple):
    """The weights that a run reports.

    Attributes:
      how: "last", "best-validation" or "best-test".
      step: after which they were taken.
    """

    state: TrainState
    how: str
    step: int


def select(plan: RunPlan, last: TrainState, best: Best | None) -> Selected:
    """The best weights of the run, or the last ones where `best` is None."""
    how = plan.config.eval.select
    if best is None:
        return Selected(last, how, plan.steps)
    params, batch_stats, masks = replicate(
        (best.params, best.batch_stats, best.masks), plan.devices
    )
    opt_state = last.opt_state._replace(masks=masks)
    state = dataclasses.replace(last, params=params, batch_stats=batch_stats, opt_state=opt_state)
    return Selected(state, how, int(best.step))
