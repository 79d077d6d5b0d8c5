"""Decoded images of a TFDS set, as .npy files in a folder that proves what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cka_sr_jax.data.splits import Split, Splits
from cka_sr_jax.data.tfds_folder import INFO_FILE

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
LEFTOVER_SECONDS = 24 * 3600


def cache_key(prepared: Path, root: Path) -> str:
    """E.g. cifar10-3.0.2-1f2e...: what the set is, and a digest of its folder's content."""
    digest = hashlib.sha256((prepared / INFO_FILE).read_bytes())
    sizes = sorted((file.name, file.stat().st_size) for file in prepared.iterdir())
    digest.update(json.dumps(sizes).encode())
    return "-".join((*prepared.relative_to(root).parts, digest.hexdigest()[:16]))


def open_cached(folder: Path) -> Splits | None:
    """The arrays of a cache folder; None where it is not there or not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta.pop("digest") != _digest_of_json(meta):
            return None
        for name in ARRAYS:
            if _digest(folder / f"{name}.npy") != meta["digests"][name]:
                return None
        arrays = [np.load(folder / f"{array}.npy", mmap_mode="r") for array in ARRAYS]
        num_classes = int(meta["num_classes"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    splits = Splits(Split(*arrays[:2]), Split(*arrays[2:]), num_classes)
    return splits if all(_fits(split, num_classes) for split in splits[:2]) else None


def make_cache(folder: Path, write: Callable[[Path], int]) -> None:
    """Make a cache folder. A sibling is filled, then renamed: no killed run leaves half of one.

    Args:
      write: `(folder) -> number of classes`, writes the arrays.

    Raises:
      OSError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)  # it is missing or unreadable
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.parent / f"{folder.name}.partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        num_classes = write(partial)
        digests = {array: _digest(partial / f"{array}.npy") for array in ARRAYS}
        meta = {"num_classes": num_classes, "digests": digests}
        whole = {**meta, "digest": _digest_of_json(meta)}
        (partial / "meta.json").write_text(json.dumps(whole))
        try:
            os.replace(partial, folder)
        except OSError:
            if open_cached(folder) is None:  # else another run has just put the same files there
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fits(split: Split, num_classes: int) -> bool:
    """Whether these are images with a label of a class each."""
    images, labels = map(np.asarray, split)
    if (images.dtype, images.ndim) != (np.uint8, 4):
        return False
    if (labels.dtype, labels.shape) != (np.int32, images.shape[:1]):
        return False
    return bool(labels.min() >= 0 and labels.max() < num_classes)


def _digest_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
