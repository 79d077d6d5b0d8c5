"""Compiled programs kept on the disk, so that a program that was compiled once starts at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import warnings
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from cka_sr_jax.data import user_cache

MOST_BYTES = 2**30  # then the programs that were not used for longest go
LEAST_SECONDS = 0.05  # to compile; what is compiled faster is hardly read faster


def keep_programs() -> None:
    """Keep what this process compiles in JAX's persistent cache, and use what is there.

    The cache is in the user's cache folder, apart for each kind of processor and number of threads,
    which JAX leaves out of a program's name; JAX itself adds its version and the accelerator.
    Nothing changes where JAX has a cache already (JAX_COMPILATION_CACHE_DIR), where it shall have
    none (JAX_ENABLE_COMPILATION_CACHE=false), and where the folder cannot be written or others may
    write it: what is in it is run.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, RuntimeError):  # read-only, full, or no home at all
        folder = user_cache() / "programs" / _processor()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK | os.X_OK) and _is_own(folder):
            _remove_halves(folder)
            config.update("jax_compilation_cache_dir", str(folder))
            # With a limit, JAX also locks the folder at each use.
            config.update("jax_compilation_cache_max_size", MOST_BYTES)
            config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
            # A damaged program or a full disk costs a compilation.
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation")


def programs_are_kept() -> bool:
    """Whether `keep_programs` has done so, and processes that this one starts should too."""
    config: Any = jax.config
    return config.jax_compilation_cache_max_size == MOST_BYTES


def _is_own(folder: Path) -> bool:
    """Whether the folder is this user's, and nobody else may write it."""
    if not hasattr(os, "getuid"):  # as on Windows
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove_halves(folder: Path) -> None:
    """Remove what a killed process left of a program: JAX would store no other beside it."""
    with contextlib.suppress(Timeout), FileLock(folder / ".lockfile", timeout=1):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('cache')}atime").exists():
                program.unlink()


def _processor() -> str:
    """A name for this kind of processor: architecture, a digest of what it can do, threads."""
    threads = os.environ.get("NPROC") or _cores()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(("model name", "flags"))})
        if features:
            digest = hashlib.sha256("\n".join(features).encode()).hexdigest()
            return f"{platform.machine()}-{digest[:12]}-{threads}"
    return f"{platform.machine()}-{platform.node()}-{threads}"  # one for each machine


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
