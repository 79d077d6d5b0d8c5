"""Checkpoints of a run: Orbax, one flat {path: array} dict a step, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from cka_sr_jax.training.build import RunPlan, state_shapes
from cka_sr_jax.training.config import config_errors, read_config
from cka_sr_jax.training.methods import model_weights
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


def newest_snapshot(plan: RunPlan, workdir: Path) -> Snapshot | None:
    """The newest checkpoint of the plan's run in `workdir`; None where it has none.

    Raises:
      ConfigError: the checkpoint is of another run.
    """
    if not (workdir / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(workdir, plan.config.checkpoint.keep)
    try:
        if checkpoints.latest_step() is None:
            return None
        with config_errors():
            return checkpoints.restore(Snapshot.at_start(plan, state_shapes(plan)))
    finally:
        checkpoints.close()


class Checkpoints:
    """The checkpoints in a work directory, newest first to be restored.

    A pytree is stored as {path of each leaf: array}, so that it reads back without its classes, and
    a checkpoint that does not fit the run is refused by the name of the first leaf that differs.
    """

    def __init__(self, workdir: str | Path, keep: int = 2) -> None:
        """Open `workdir`/checkpoints, which is made if it is missing; keep the newest `keep`."""
        self._manager = ocp.CheckpointManager(
            Path(workdir).resolve() / "checkpoints",
            item_handlers=ocp.StandardCheckpointHandler(),  # or it could not read metadata
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Write a checkpoint in the background; `close` waits for it."""
        if step != self._manager.latest_step():
            # Copies, since the next training step reuses the state's memory during the write.
            arrays = {path: np.array(leaf) for path, leaf in _flatten(tree).items()}
            self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, template: Any) -> Any:
        """The newest checkpoint, as host arrays in the structure of `template`.

        Raises:
          ValueError: it has other leaves, shapes or types than the template, for example no masks
            or masks of another model.
        """
        stored = self.arrays()
        expected = _flatten(template)
        for path in expected | stored:
            if path not in stored or path not in expected:
                place = "checkpoint" if path in stored else "run"
                raise ValueError(
                    f"the checkpoint does not fit this run: only the {place} has {path!r}; "
                    "use the config that wrote it, or another --workdir."
                )
            shapes = [(leaf.shape, leaf.dtype) for leaf in (stored[path], expected[path])]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the checkpoint does not fit this run: {path!r} is {shapes[0]} in it and "
                    f"{shapes[1]} here; use the config that wrote it, or another --workdir."
                )
        return jax.tree.unflatten(jax.tree.structure(template), [stored[p] for p in expected])

    def arrays(self) -> dict[str, np.ndarray]:
        """The newest checkpoint as {path: array}, such as "state.params.head.kernel".

        Raises:
          ValueError: there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            raise ValueError(
                f"{self._manager.directory} holds no complete checkpoint; a lottery's are in the "
                "folders of its rounds, and networks of a layer-sparsity experiment are read with "
                "cka_sr_jax.layer_sparsity.load_mlp."
            )
        metadata = self._manager.item_metadata(step)
        # Host arrays, whatever devices wrote them.
        target = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in metadata.items()}
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Wait for the last write and let go of the directory."""
        self._manager.wait_until_finished()
        self._manager.close()


def newest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint in `workdir`, None where there is none."""
    if not (workdir / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


def load_variables(workdir: str | Path) -> dict[str, Any]:
    """{"params", "batch_stats"} of the weights that a run's result is of, for `model.apply`.

    With `eval.select` these are the best ones and not the last. Pruned weights are 0, also of a
    rule that learns its masks.

    Raises:
      ValueError: `workdir` holds no run with a checkpoint.
    """
    config = Path(workdir) / "config.json"
    if not config.exists():
        raise ValueError(f"{workdir} holds no run: it has no config.json.")
    settings = read_config(config)
    chosen = "state" if settings["eval.select"] == "last" else "best"
    checkpoints = Checkpoints(workdir)
    try:
        arrays = checkpoints.arrays()
    finally:
        checkpoints.close()
    stored = traverse_util.unflatten_dict(arrays, sep=".")[chosen]
    variables = {name: stored.get(name, {}) for name in ("params", "batch_stats")}
    sparsity = traverse_util.unflatten_dict(settings, sep=".")["sparsity"]
    variables["params"] = model_weights(sparsity, variables["params"])
    return variables


def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
