"""The work directory of a run: its path, whose it is, and files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.report import say
from cka_sr_jax.report.parse import parse_stored
from cka_sr_jax.training.checkpoints import stored_config
from cka_sr_jax.training.config import ConfigError, difference, flatten, with_defaults
from cka_sr_jax.training.locks import LOCK

# Orbax takes these in a path for patterns, and would not find its own checkpoints.
PATTERN_CHARACTERS = "[]*?\\".replace(os.sep, "")
# What a run keeps in its directory.
RUN_FOLDERS = ("checkpoints", "report", "tensorboard")
RUN_FILES = ("config.json", "metrics.jsonl", "result.json")
LONGEST_NAME = 255  # bytes of one part of a path, on all common file systems


def local_folder(workdir: str | Path) -> Path:
    """The path of a work directory, with "~" expanded.

    Raises:
      ConfigError: it is not a path on this machine, or one whose files could not be found again.
    """
    text = str(workdir)
    if not text.strip():
        raise ConfigError(f"--workdir={text!r} is empty: name a folder, or leave it out.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"--workdir={text!r} is not UTF-8, and checkpoints need a path that is: name another."
        ) from error
    scheme = re.match(r"([A-Za-z][\w+.-]+):/", text)
    if scheme:
        raise ConfigError(
            f"--workdir={text} is a {scheme[1]} address, and runs are kept in local folders: name "
            "one, and copy it when the run has ended."
        )
    special = sorted({character for character in text if character in PATTERN_CHARACTERS + "\0"})
    if special:
        raise ConfigError(
            f"--workdir={text!r} has {' '.join(map(repr, special))} in it, with which checkpoints "
            "would not be found: name a folder without."
        )
    try:
        folder = Path(text).expanduser()
        folder.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--workdir={text} cannot be used ({reason}): name another.") from error
    long = [part for part in folder.absolute().parts if len(os.fsencode(part)) > LONGEST_NAME]
    if long:
        raise ConfigError(
            f"--workdir={text} has a name of {len(os.fsencode(long[0]))} bytes, and file systems "
            f"allow {LONGEST_NAME}: shorten it."
        )
    return folder


def read_result(
    workdir: Path, check: Callable[[dict[str, Any]], Any], console: Console
) -> dict[str, Any] | None:
    """The content of a run's result.json; None where it has none, or a damaged one (this is said).

    Args:
      check: reads what the caller needs of it, and fails as reading fails where that is missing.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        result = parse_stored(path.read_text())
        if not isinstance(result, dict):
            raise TypeError
        check(result)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        say(console, f"{path} is damaged, so it is made again.")
        return None
    return result


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Check that `workdir` is new, empty, or holds a run of this config.

    Raises:
      ConfigError: it does not; nothing has been written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file: name a directory.")
    for folder in (workdir.absolute(), *workdir.absolute().parents):
        if folder.name in RUN_FOLDERS and _is_run(folder.parent):
            raise ConfigError(
                f"--workdir={workdir} is in {folder}, which belongs to another run: name a folder "
                "outside."
            )
    for name in (*RUN_FOLDERS, *RUN_FILES):
        path = workdir / name
        if path.exists() and path.is_dir() != (name in RUN_FOLDERS):
            kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
            raise ConfigError(
                f"{path} is {kinds[0]} where a run keeps {kinds[1]}: move it away, or pass another "
                "--workdir."
            )
    if workdir.is_symlink() and not workdir.exists():
        raise ConfigError(
            f"--workdir={workdir} is a link to {os.readlink(workdir)}, which is not there: make "
            "that folder, or name another."
        )
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise _unwritable(workdir, f"{there} is a file")
    for folder in (there, workdir / "checkpoints"):
        if folder.exists() and (problem := _write_problem(folder)):
            raise _unwritable(workdir, f"{folder}: {problem}")
    stored = workdir / "config.json"
    if not stored.exists():
        # A run that was killed while it wrote its config leaves a .tmp file.
        if workdir.exists() and any(_is_foreign(path) for path in workdir.iterdir()):
            raise ConfigError(
                f"--workdir={workdir} holds files but no run: name a new or an empty directory."
            )
        return
    now = flatten(config)
    try:
        before = with_defaults(parse_stored(stored.read_text()))
        other = difference(before, now)
    except (OSError, ValueError, AttributeError, TypeError):
        before, other = {}, "config.json"
    if other is None:
        return
    proven = stored_config(workdir)  # a checkpoint knows its config, and proves it by a digest
    if proven is not None:
        before, other = proven, difference(proven, now)
    if other is None:
        write_json(stored, config.to_dict())  # it was damaged
        return
    if not before:
        raise ConfigError(
            f"{stored} is damaged: delete it if the directory holds no other config's run, or pass "
            "another --workdir."
        )
    raise ConfigError(
        f"--workdir={workdir} belongs to another config: {other} is {before.get(other)!r} there "
        f"and {now.get(other)!r} now; pass another --workdir."
    )


def _is_run(folder: Path) -> bool:
    try:
        return "sparsity" in parse_stored((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _unwritable(workdir: Path, reason: str) -> ConfigError:
    return ConfigError(f"--workdir={workdir} cannot be written ({reason}): name another.")


def _write_problem(folder: Path) -> str | None:
    """Why no file can be made in this folder, or None. What `os.access` says is not always so."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _is_foreign(path: Path) -> bool:
    return path.suffix != ".tmp" and path.name != LOCK


def start_workdir(config: ConfigDict, workdir: Path) -> None:
    """Make the directory and write its config.json.

    Raises:
      ConfigError: the file system refuses.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", config.to_dict())
    except OSError as error:
        raise _unwritable(workdir, error.strerror or str(error)) from error


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
