"""Compiled programs kept on the disk, so that a program that was compiled once starts at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax

from cka_sr_jax.data import user_cache

MOST_BYTES = 2**30  # then the programs that were not used for longest go
LEAST_SECONDS = 0.05  # to compile; what is compiled faster is hardly read faster


def keep_programs() -> None:
    """Keep what this process compiles in JAX's persistent cache, and use what is there.

    Processes that this one starts do the same. The cache is in the user's cache folder, apart for
    each kind of processor, since a program for one may not run on another; JAX adds its own version
    and the accelerator to the name of each program. Nothing changes where JAX has a cache already
    (JAX_COMPILATION_CACHE_DIR), where it shall have none (JAX_ENABLE_COMPILATION_CACHE=false), and
    where the folder cannot be written.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, RuntimeError):  # read-only, full, or no home at all
        folder = user_cache() / "programs" / _processor()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK | os.X_OK):
            _use(folder)


def _use(folder: Path) -> None:
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MOST_BYTES,  # with it, JAX locks the folder at each use
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    # A damaged entry or a full disk costs a compilation and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _processor() -> str:
    """A name for this kind of processor: its architecture and a digest of what it can do."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(("model name", "flags"))})
        if features:
            digest = hashlib.sha256("\n".join(features).encode()).hexdigest()
            return f"{platform.machine()}-{digest[:12]}"
    return f"{platform.machine()}-{platform.node()}"  # one for each machine
