"""TFDS image-classification sets prepared as array_record, read without TensorFlow.

The images are decoded once, into .npy files in a cache folder; later runs map these into memory and
import no TFDS. Nothing is ever downloaded, and the prepared set's folder may be read-only.
"""

from __future__ import annotations

import contextlib
import json
import logging as python_logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cka_sr_jax.data.splits import Splits
from cka_sr_jax.data.tfds_cache import cache_key, make_cache, open_cached
from cka_sr_jax.data.tfds_folder import INFO_FILE, find_prepared

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
            with _quiet_tfds():
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
    builder = _open_builder(where, prepared)
    image_key, label_key = _feature_keys(where, builder.info)
    num_classes = getattr(builder.info.features[label_key], "num_classes", None)
    shape, largest_label = None, 0
    for role, split in (("train", "train"), ("test", _test_split(where, builder.info))):
        source = _open_split(where, builder, split)
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


def _open_builder(where: str, prepared: Path) -> Any:
    """The set's TFDS builder, which only reads."""
    try:
        file_format = json.loads((prepared / INFO_FILE).read_text()).get("fileFormat")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} has an unreadable {INFO_FILE}; prepare it again.") from error
    if file_format != "array_record":
        raise ValueError(
            f"{where} is in the format {file_format!r}; expected 'array_record', which is read "
            "without TensorFlow, so prepare it again with file_format='array_record'."
        )
    import tensorflow_datasets as tfds  # takes half a second, so only where it is needed

    try:
        builder = tfds.builder_from_directory(prepared)
        _ = builder.info.features, builder.info.splits
    except Exception as error:  # whatever TFDS makes of a damaged features.json
        raise ValueError(f"{where} cannot be opened ({error}); prepare it again.") from error
    return builder


def _feature_keys(where: str, info: Any) -> tuple[str, str]:
    """The keys of the image and of the label: the supervised ones, else "image" and "label"."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if not (isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(k, str) for k in keys)):
        keys = ("image", "label")
    is_named = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features.items()) if is_named else {}
    image, label = (features.get(key) for key in keys)
    is_image = isinstance(image, tfds.features.Image | tfds.features.Tensor) and (
        image.np_dtype == np.uint8 and len(image.shape) == 3
    )
    is_label = isinstance(label, tfds.features.Tensor) and (
        np.issubdtype(label.np_dtype, np.integer) and label.shape == ()
    )
    if not (is_image and is_label):
        raise ValueError(
            f"{where} has the features {', '.join(features) or '(unnamed)'}, with {keys[0]!r} as "
            f"{_describe(image)} and {keys[1]!r} as {_describe(label)}; expected a uint8 image and "
            "one integer label, so choose an image-classification set."
        )
    return keys


def _describe(feature: Any) -> str:
    return "missing" if feature is None else " ".join(str(feature).split())


def _test_split(where: str, info: Any) -> str:
    """The split to test on: "test", else "validation"."""
    splits = set(info.splits)
    tests = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not tests:
        raise ValueError(
            f"{where} has the splits {', '.join(sorted(splits)) or '(none)'}; expected 'train' and "
            "'test' (or 'validation'), so choose a set that has them."
        )
    return tests[0]


def _open_split(where: str, builder: Any, split: str) -> Any:
    """A random-access source of the split's examples, all of whose files are there."""
    files = [Path(file) for file in builder.info.splits[split].filepaths]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not builder.info.splits[split].num_examples:
        raise ValueError(
            f"{where} is incomplete (split {split!r}: "
            f"{', '.join(missing[:3]) + ' missing' if missing else 'no examples'}); prepare it "
            "again."
        )
    records = sum(_records(where, file) for file in files)
    if records != builder.info.splits[split].num_examples:
        raise ValueError(
            f"{where} has {records} examples in the files of split {split!r}, and its {INFO_FILE} "
            f"says {builder.info.splits[split].num_examples}; prepare it again."
        )
    return builder.as_data_source(split=split)


def _records(where: str, file: Path) -> int:
    """How many records an array_record file has."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    except Exception as error:  # whatever the reader makes of a damaged file
        raise ValueError(f"{where}: {file.name} cannot be read; prepare it again.") from error


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


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Drops the lines TFDS logs about itself: its progress, and its advice to install OpenCV."""

    def is_wanted(record: python_logging.LogRecord) -> bool:
        is_advice = record.levelno < python_logging.WARNING or "OpenCV" in str(record.msg)
        return not (is_advice and "tensorflow_datasets" in record.pathname)

    logger = logging.get_absl_logger()
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
