"""One process at a time works in a work directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cka_sr_jax.training.config import ConfigError

LOCK = ".lock"


@contextmanager
def claim(workdir: Path) -> Iterator[bool]:
    """Keep other processes out of a work directory until the block ends.

      with claim(workdir) as claimed:
          if claimed:
              ...

    The directory is made where it is missing, and taken away again if the block leaves it empty.
    The operating system frees the claim when the process ends, even if it is killed.

    Returns:
      Whether this block has the claim. False: another process, or another block, has it.

    Raises:
      ConfigError: the directory cannot be made or written, or its file system has no locks.
    """
    new = [folder for folder in (workdir, *workdir.absolute().parents) if not folder.exists()]
    path = workdir / LOCK
    # A soft lock is a plain file: it would outlive a process that is killed.
    file = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file.acquire()
    except Timeout:
        pass
    except (OSError, NotImplementedError) as error:
        _remove_empty(new)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot lock {path} ({reason}): choose a --workdir that is writable, on a file system "
            "that supports file locks."
        ) from error
    try:
        # The process before this one may just have removed the file, and with it this lock.
        yield file.is_locked and path.exists()
    finally:
        if file.is_locked:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
        file.release()
        _remove_empty(new)


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # the first that holds something, and all above it, stay
        for folder in folders:
            folder.rmdir()
