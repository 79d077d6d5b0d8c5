"""What a run goes on from, as its newest intact checkpoint has it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cka_sr_jax.training.build import RunPlan, state_shapes
from cka_sr_jax.training.checkpoints import Checkpoints
from cka_sr_jax.training.config import config_errors
from cka_sr_jax.training.hosts import arrays_of_first, of_first
from cka_sr_jax.training.selection import Best, nothing_yet
from cka_sr_jax.training.step import TrainState


class Snapshot(NamedTuple):
    """What a checkpoint holds: all that a run needs to go on.

    Attributes:
      best: the best weights so far; None where the run reports its last ones.
      seconds: of training.
      flops: of training.
    """

    state: TrainState
    best: Best | None
    seconds: Any
    flops: Any

    @classmethod
    def at_start(cls, plan: RunPlan, state: TrainState) -> Snapshot:
        """Before the first step."""
        return cls(state, nothing_yet(plan, state), np.array(0.0), np.array(0.0))


def newest_snapshot(
    plan: RunPlan, workdir: Path, tell: Callable[[str], None] = warnings.warn
) -> Snapshot | None:
    """The newest intact checkpoint of the plan's run in `workdir`; None where it has none.

    All others are removed: what is newer is damaged, and the run that goes on writes it again.

    Args:
      tell: gets a sentence for each checkpoint that is damaged.

    Raises:
      ConfigError: the checkpoint is of another run, or all are damaged.
    """
    checkpoints = Checkpoints(workdir, config=plan.config.to_dict(), tell=tell)
    if not of_first(lambda: bool(checkpoints.steps())):
        return None
    template = Snapshot.at_start(plan, state_shapes(plan))
    found: list[Snapshot] = []

    def restore() -> None:
        with config_errors():
            found.append(checkpoints.restore(template))
        checkpoints.remove_all_but(int(found[0].state.step))

    of_first(restore)
    if not found:  # on the processes that do not read
        found.append(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template))
    return arrays_of_first(found[0])
