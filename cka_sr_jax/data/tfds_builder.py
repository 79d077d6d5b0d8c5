"""A prepared TFDS set, opened to be read without TensorFlow: its features and its splits."""

from __future__ import annotations

import contextlib
import json
import logging as python_logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cka_sr_jax.data.tfds_folder import INFO_FILE


def open_builder(where: str, prepared: Path) -> Any:
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


def feature_keys(where: str, info: Any) -> tuple[str, str]:
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


def test_splits(where: str, info: Any) -> list[str]:
    """The splits to test on, the best first: "test", "validation"."""
    splits = set(info.splits)
    tests = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not tests:
        raise ValueError(
            f"{where} has the splits {', '.join(sorted(splits)) or '(none)'}; expected 'train' and "
            "'test' (or 'validation'), so choose a set that has them."
        )
    return tests


def check_files(where: str, builder: Any, split: str) -> None:
    """Raise ValueError unless all files of the split are there, in the set's folder, and whole."""
    files = [Path(os.path.normpath(file)) for file in builder.info.splits[split].filepaths]
    folder = Path(os.path.normpath(builder.data_dir))
    if any(file.parent != folder for file in files):
        raise ValueError(
            f"{where} names files outside of its folder for split {split!r}, such as "
            f"{str(files[0])!r}; prepare it again."
        )
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


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
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
