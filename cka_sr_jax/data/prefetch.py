"""Items of a source made ahead of time, by Grain's threads or worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import flags

MOST_THREADS = 8  # each has an item in memory
AHEAD = 2  # items that wait at each worker


@runtime_checkable
class Source(Protocol):
    """Items by number; `repr` is the same in every process."""

    def __len__(self) -> int:
        """How many items."""

    def __getitem__(self, i: Any) -> dict[str, np.ndarray]:
        """One item."""


class _Endless:
    """A source with empty items after its own.

    Grain keeps the last item of a worker that runs out, and with it the item's shared memory.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._count = source, len(source)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, i: Any) -> dict[str, np.ndarray]:
        return self._source[i] if i < self._count else {}

    def __repr__(self) -> str:
        return f"_Endless({self._source!r})"


class Prefetched:
    """The items of a source in order, each once.

    Several are made at a time: by threads of this process where `workers` is 0 (Pillow decodes
    without holding the interpreter), else by that many processes.

      with Prefetched(source, workers=2) as items:
          for item in items: ...
    """

    def __init__(self, source: Source, workers: int) -> None:
        """Start to make items."""
        self._iterator: Any = None
        if workers:
            # Else Grain's thread would start it, and then let stop signals through to the workers.
            resource_tracker.ensure_running()
        self._executor = ThreadPoolExecutor(1, "prefetch", initializer=_block_stop_signals)
        self._left = len(source)
        self._ahead: Future[Any] = self._executor.submit(self._first, source, workers)

    def _first(self, source: Source, workers: int) -> Any:
        self._iterator = iter(_dataset(source, workers))
        return next(self._iterator)

    @property
    def ready(self) -> bool:
        """Whether the next item is there."""
        return self._ahead.done()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next item; waits for it.

        Raises:
          ValueError: what the source raised, or a worker process died.
        """
        if not self._left:
            raise StopIteration
        try:
            item = self._ahead.result()
        except RuntimeError as error:
            if "exit code" not in str(error):
                raise
            raise ValueError(
                f"A process that prepares data has died ({' '.join(str(error).split())[:120]}): "
                "use fewer data.workers if memory was short, or 0 if shared memory (/dev/shm) was; "
                "the same command goes on."
            ) from error
        self._left -= 1
        self._ahead = self._executor.submit(next, self._iterator)
        # Plain arrays: workers send them as a subclass, in shared memory, which JAX does not take.
        return {name: np.asarray(array) for name, array in item.items()}

    def close(self) -> None:
        """End the threads and processes; waits for the item that is being made."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._iterator is not None:
            self._iterator.close()
        # Here, while the interpreter still has what Grain needs to let go of them.
        self._iterator, self._ahead = None, Future()

    def __enter__(self) -> Prefetched:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _dataset(source: Source, workers: int) -> Any:
    import grain  # takes a second, so only where it is needed

    # Grain reads its own flags, also in a program that has no command line to parse.
    for flag in (flags.FLAGS[name] for name in flags.FLAGS if name.startswith("grain_")):
        flag.present = flag.present or 1
    threads = 0 if workers else min(os.cpu_count() or 1, MOST_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.source(_Endless(source)).to_iter_dataset(options)
    if not workers:
        return dataset
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=_end_with_parent,
    )


def _block_stop_signals() -> None:
    """Leave Ctrl-C and what batch systems send to the main thread.

    The workers inherit this. They go on until the run has saved its checkpoint and closes them.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def _end_with_parent(*_: int) -> None:
    """End this worker as soon as the process that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        with contextlib.suppress(Exception):
            parent.join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
