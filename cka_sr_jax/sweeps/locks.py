"""File locks: one process at a time works on a point of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cka_sr_jax.training import ConfigError


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Try to lock the file `path`, without waiting, until the block ends.

      with lock(path) as held:
          if held:
              ...

    The operating system frees the lock when the process ends, even if it is killed.

    Args:
      path: made if it does not exist, folders included.

    Returns:
      Whether this block holds the lock. False: another process, or another block, does.

    Raises:
      ConfigError: the file cannot be made, or its file system has no locks.
    """
    # A soft lock is a plain file: it would outlive a process that is killed.
    file = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file.acquire()
    except Timeout:
        pass
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot lock {path} ({reason}): choose a --workdir that is writable, on a file system "
            "that supports file locks."
        ) from error
    try:
        yield file.is_locked
    finally:
        file.release()
