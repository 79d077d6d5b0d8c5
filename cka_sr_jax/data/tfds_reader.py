"""TFDS image-classification sets prepared as array_record, read without TensorFlow.

The images are decoded once, into .npy files in a cache folder; later runs map these into memory and
import no TFDS. Nothing is ever downloaded, and the prepared set's folder may be read-only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cka_sr_jax.data.splits import Splits
from cka_sr_jax.data.tfds_builder import (
    check_files,
    feature_keys,
    open_builder,
    quiet_tfds,
    test_splits,
)
from cka_sr_jax.data.tfds_cache import cache_key, make_cache, open_cached
from cka_sr_jax.data.tfds_folder import find_prepared

DECODE_BATCH = 1000
PROGRESS_SECONDS = 10


def load_tfds(
    name: str, directory: str | os.PathLike[str], cache: str | os.PathLike[str]
) -> Splits:
    """The splits of a prepared TFDS set.

    Images are uint8 [N, H, W, C], labels int32 [N], both mapped read-only from .npy files under
    `cache`, in the set's own order. The newest version is taken; a set without a test split is
    tested on its validation split. The cached copy is used for as long as the prepared folder has
    the same `dataset_info.json` and the same files with the same sizes, and while its own files
    match their digests; else it is made again.

    Args:
      name: "cifar10", or "set/configuration".
      directory: the folder that holds name/version or name/configuration/version.
      cache: the folder for decoded images; made where it is missing.

    Raises:
      ValueError: the set is not there, is damaged, is not in array_record format, is not a set of
        equal-sized uint8 images with one integer label each, or the cache cannot be written.
    """
    prepared = find_prepared(name, directory)
    cached = Path(cache) / cache_key(prepared, Path(directory).expanduser())
    arrays = open_cached(cached)
    if arrays is None:
        try:
            with quiet_tfds():
                make_cache(cached, lambda folder: _decode(folder, name, prepared))
        except OSError as error:
            raise ValueError(
                f"The decoded images of {name!r} cannot be written to {str(cached)!r} "
                f"({error.strerror or error}); set data.cache_dir to a folder that can be written "
                "and has room for them."
            ) from error
        arrays = open_cached(cached)
        assert arrays is not None, cached
    return arrays


def _decode(folder: Path, name: str, prepared: Path) -> int:
    """Writes the .npy files of both splits into `folder`; returns the number of classes."""
    where = f"The TFDS set {name!r} in {str(prepared)!r}"
    builder = open_builder(where, prepared)
    image_key, label_key = feature_keys(where, builder.info)
    num_classes = getattr(builder.info.features[label_key], "num_classes", None)
    shape, largest_label = None, 0
    for role, split in (("train", "train"), ("test", test_splits(where, builder.info)[0])):
        check_files(where, builder, split)
        source = builder.as_data_source(split=split)
        shape = shape or _read(where, source, range(1))[0][image_key].shape
        labels: list[int] = []
        with open(folder / f"{role}_images.npy", "wb") as file:
            # Written batch by batch: the set need not fit in memory, and a full disk is an OSError.
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for examples in _batches(where, source):
                images = [example[image_key] for example in examples]
                _check_shapes(where, images, shape)
                file.write(np.stack(images).tobytes())
                labels += [int(example[label_key]) for example in examples]
        _check_labels(where, split, labels, num_classes)
        np.save(folder / f"{role}_labels.npy", np.asarray(labels, np.int32))
        largest_label = max(largest_label, *labels)
    return num_classes or largest_label + 1


def _read(where: str, source: Any, indices: range) -> list[dict[str, Any]]:
    try:
        return source.__getitems__(list(indices))
    except Exception as error:  # RuntimeError from the records, OSError from the images, ...
        raise ValueError(
            f"{where} cannot be read at examples {indices.start} to {indices.stop - 1} of split "
            f"{source.split!r} ({error}); prepare it again."
        ) from error


def _batches(where: str, source: Any) -> Iterator[list[dict[str, Any]]]:
    """The source's examples in order, with a line of progress now and then."""
    reported = time.monotonic()
    for start in range(0, len(source), DECODE_BATCH):
        stop = min(start + DECODE_BATCH, len(source))
        yield _read(where, source, range(start, stop))
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            logging.info("%s: decoded %d of %d images.", where, stop, len(source))


def _check_shapes(where: str, images: list[np.ndarray], shape: tuple[int, ...]) -> None:
    for image in images:
        if image.shape != shape:
            raise ValueError(
                f"{where} has images of shape {shape} and of shape {image.shape}; expected one "
                "size, so choose or prepare a set of resized images."
            )


def _check_labels(where: str, split: str, labels: list[int], num_classes: int | None) -> None:
    low, high = min(labels), max(labels)
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise ValueError(
            f"{where} has labels from {low} to {high} in its split {split!r}; expected 0 to "
            f"{'the number of classes' if num_classes is None else num_classes} - 1, so choose a "
            "set whose every split is labeled."
        )
