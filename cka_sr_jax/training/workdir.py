"""The work directory of a run: whose it is, and files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cka_sr_jax.training.config import RESUMABLE, ConfigError, flatten, read_config


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Check that `workdir` is new, empty, or holds a run of this config.

    Raises:
      ConfigError: it does not; nothing has been written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file: name a directory.")
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(
            f"--workdir={workdir} cannot be written, because {there} is a file or read-only: name "
            "another."
        )
    stored = workdir / "config.json"
    if not stored.exists():
        # A run that was killed while it wrote its config leaves a .tmp file.
        if workdir.exists() and any(path.suffix != ".tmp" for path in workdir.iterdir()):
            raise ConfigError(
                f"--workdir={workdir} holds files but no run: name a new or an empty directory."
            )
        return
    try:
        before = read_config(stored)
    except ValueError:
        raise ConfigError(f"{stored} is damaged: pass another --workdir.") from None
    now = flatten(config)
    for field in before | now:
        if field not in RESUMABLE and before.get(field) != now.get(field):
            raise ConfigError(
                f"--workdir={workdir} belongs to another config: {field} is "
                f"{before.get(field)!r} there and {now.get(field)!r} now; pass another --workdir."
            )


def start_workdir(config: ConfigDict, workdir: Path) -> None:
    """Make the directory and write its config.json.

    Raises:
      ConfigError: the file system refuses.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", config.to_dict())
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written ({error.strerror}): name another."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or none of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2) + "\n")
    os.replace(temporary, path)


def finite(content: Any) -> Any:
    """The content with None for NaN and infinity, which JSON lacks."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
