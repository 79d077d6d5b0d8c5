"""Checkpoints of a run: Orbax, one flat {path: array} dict a step, written atomically.

Each has a digest of every array, its step and the run's config beside it. What does not match its
digest is damaged and never read; the newest intact checkpoint is taken instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import operator
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cka_sr_jax.training.config import difference, with_defaults
from cka_sr_jax.training.seal import Sealed, sealed, unsealed


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
          config: of the run, stored with each checkpoint; one of another config is refused.
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
        names = [path.name for path in self._folder.iterdir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def latest_step(self) -> int | None:
        """The newest of `steps`, None where there is none; waits for one that is being written."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
        return max(self.steps(), default=None)

    def save(self, step: int, tree: Any) -> None:
        """Write a checkpoint in the background; `close` waits for it.

        Raises:
          ValueError: a step before the newest checkpoint's, or a leaf that cannot be stored.
          OSError: the disk refuses, maybe at a later call.
        """
        if operator.index(step) < 0:
            raise ValueError(f"step={step} is negative: steps are counted from 0.")
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
        latest = self._manager.latest_step()
        if latest is not None and step < latest:
            raise ValueError(
                f"step={step} is before {latest}, the newest checkpoint in {self._folder}: steps "
                "increase, so save a later one or use another folder."
            )
        if step != latest:
            arrays = sealed(step, _copies(tree), self._config)
            with self._writing():
                self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, template: Any) -> Any:
        """The newest intact checkpoint, as host arrays in the structure of `template`.

        Raises:
          ValueError: there is none; its leaves, shapes or types are not those of the template; or
            the run of another config wrote it.
        """
        stored, written_by, _ = self.newest()
        if self._config is not None and written_by is not None:
            before = with_defaults(written_by)
            now = with_defaults(json.loads(json.dumps(self._config)))
            if field := difference(before, now):
                raise ValueError(
                    f"the checkpoints in {self._folder} are of another run: {field} is "
                    f"{before.get(field)!r} there and {now.get(field)!r} here; use the config that "
                    "wrote them, or another --workdir."
                )
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
            path = self._folder / str(other)
            if other == step:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

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


def newest_intact_step(workdir: Path) -> int | None:
    """The step of the newest checkpoint in `workdir` that is what was written; None without one."""
    try:
        return Checkpoints(workdir, tell=lambda _: None).newest().step
    except ValueError:
        return None


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
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if path in flat:
            raise ValueError(f"two leaves have the path {path!r}: rename one.")
        flat[path] = leaf
    return flat


def _copies(tree: Any) -> dict[str, np.ndarray]:
    """Copies, since the next training step reuses the state's memory during the write."""
    arrays = {path: np.array(leaf) for path, leaf in _flatten(tree).items()}
    for path, array in arrays.items():
        if not array.size or array.dtype.kind in "OUSM":
            raise ValueError(
                f"{path!r} has shape {array.shape} and type {array.dtype}: a checkpoint holds "
                "numbers, at least one in each array."
            )
    return arrays


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
