"""Checkpoints of a run: Orbax, one flat {path: array} dict a step, written atomically.

Each has a digest of every array, its step and the run's config beside it. What does not match its
digest is damaged and never read; the newest intact checkpoint is taken instead.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cka_sr_jax.training.build import RunPlan, state_shapes
from cka_sr_jax.training.config import config_errors, with_defaults
from cka_sr_jax.training.hosts import arrays_of_first, of_first
from cka_sr_jax.training.seal import Sealed, sealed, unsealed
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
    checkpoints = Checkpoints(workdir, tell=tell)
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


class Checkpoints:
    """The checkpoints in a work directory, newest first to be restored.

    A pytree is stored as {path of each leaf: array}, so that it reads back without its classes, and
    a checkpoint that does not fit the run is refused by the name of the first leaf that differs.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep: int = 2,
        config: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Nothing is read or written yet.

        Args:
          keep: how many of the newest to keep.
          config: of the run, stored with each checkpoint.
          tell: gets a sentence for each checkpoint that is passed over because it is damaged.
        """
        self._folder = Path(workdir).resolve() / "checkpoints"
        self._keep, self._config, self._tell = keep, config, tell
        self._manager: ocp.CheckpointManager | None = None  # made when something is saved

    def steps(self) -> list[int]:
        """The steps of the checkpoints that were written whole, damaged since or not."""
        if not self._folder.is_dir():
            return []
        # While Orbax writes one, its folder has another name.
        return sorted(int(p.name) for p in self._folder.iterdir() if re.fullmatch(r"\d+", p.name))

    def latest_step(self) -> int | None:
        """The newest of `steps`, None where there is none; waits for one that is being written."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
        return max(self.steps(), default=None)

    def save(self, step: int, tree: Any) -> None:
        """Write a checkpoint in the background; `close` waits for it."""
        if self._manager is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            alone = None
            if jax.process_count() > 1:  # this process writes, and waits for no other
                alone = {jax.process_index()}
            processes = ocp.options.MultiprocessingOptions(active_processes=alone)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=False, multiprocessing_options=processes
            )
            handler = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(
                self._folder, item_handlers=handler, options=options
            )
        if step != self._manager.latest_step():
            # Copies, since the next training step reuses the state's memory during the write.
            arrays = {path: np.array(leaf) for path, leaf in _flatten(tree).items()}
            arrays = sealed(step, arrays, self._config)
            with self._writing():
                self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, template: Any) -> Any:
        """The newest intact checkpoint, as host arrays in the structure of `template`.

        Raises:
          ValueError: there is none, or its leaves, shapes or types are not those of the template.
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
        """The newest intact checkpoint as {path: array}, such as "state.params.head.kernel".

        Raises:
          ValueError: there is none.
        """
        return self.newest().arrays

    def newest(self) -> Sealed:
        """The arrays and the config of the newest intact checkpoint.

        Raises:
          ValueError: there is none.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                with _reads_end():
                    return self._read(step)
            except Exception as error:  # whatever Orbax makes of damaged files
                self._tell(
                    f"Checkpoint {self._folder / str(step)} is damaged ({_one_line(error)}) and "
                    "passed over."
                )
        if steps:
            raise ValueError(
                f"every checkpoint in {self._folder} is damaged: delete that folder to train from "
                "the start, or name another --workdir."
            )
        raise ValueError(
            f"{self._folder} holds no complete checkpoint; a lottery's are in the folders of its "
            "rounds, and networks of a layer-sparsity experiment are read with "
            "cka_sr_jax.layer_sparsity.load_mlp."
        )

    def _read(self, step: int) -> Sealed:
        """Not by the manager, which opens nothing where one step's own notes are damaged."""
        folder, handler = self._folder / str(step) / "default", ocp.StandardCheckpointHandler()
        metadata = handler.metadata(folder)
        # Host arrays, whatever devices wrote them.
        target = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in metadata.items()}
        return unsealed(step, handler.restore(folder, args=ocp.args.StandardRestore(target)))

    def remove_all_but(self, step: int) -> None:
        """Remove the checkpoints of all other steps."""
        for other in self.steps():
            if other != step:
                shutil.rmtree(self._folder / str(other))

    def close(self) -> None:
        """Wait for the last write and let go of the directory."""
        if self._manager is not None:
            with self._writing():
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise whatever Orbax makes of a full or broken disk as an OSError with the folder."""
        try:
            yield
        except Exception as error:
            reason = f"a checkpoint cannot be written: {_one_line(error)}"
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise OSError(number, reason, str(self._folder)) from error


def newest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint in `workdir`, None where there is none."""
    return Checkpoints(workdir).latest_step()


def stored_config(workdir: Path) -> dict[str, Any] | None:
    """{"penalty.beta": 1e-4, ...} of the newest intact checkpoint, None where there is none.

    Fields that it lacks have their default.
    """
    try:
        config = Checkpoints(workdir, tell=lambda _: None).newest().config
    except ValueError:
        return None
    return None if config is None else with_defaults(config)


def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _reads_end() -> Iterator[None]:
    """Let Orbax's other reads end where one fails; each would print that its loop is closed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, RuntimeError):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    except Exception:
        time.sleep(0.2)
        raise
    finally:
        sys.unraisablehook = before


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if full := re.search("No space left on device", text):  # at the end of a long chain
        return full[0]
    return text if len(text) <= 120 else f"{text[:120]}..."
