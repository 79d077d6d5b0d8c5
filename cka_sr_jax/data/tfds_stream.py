"""TFDS image-classification sets that are read as they are needed: nothing is decoded ahead."""

from __future__ import annotations

import os
from typing import Any

from cka_sr_jax.data.crops import MODES
from cka_sr_jax.data.records import Records
from cka_sr_jax.data.splits import Split, Splits
from cka_sr_jax.data.streamed import StreamedImages
from cka_sr_jax.data.tfds_builder import (
    check_files,
    feature_keys,
    open_builder,
    quiet_tfds,
    test_splits,
)
from cka_sr_jax.data.tfds_folder import find_prepared


def stream_tfds(name: str, directory: str | os.PathLike[str], crop: int) -> Splits:
    """The splits of a prepared TFDS set, as `StreamedImages` of `crop` pixels and their labels.

    The newest version is taken. A set is tested on its test split, or on its validation split where
    it has no test split or, as ImageNet, one without labels.

    Args:
      name: "imagenet2012", or "set/configuration".
      directory: the folder that holds name/version or name/configuration/version.

    Raises:
      ValueError: the set is not there, is damaged, is not in array_record format, or is not a set
        of uint8 images of 1 or 3 channels with one label of known classes each.
    """
    prepared = find_prepared(name, directory)
    where = f"The TFDS set {name!r} in {str(prepared)!r}"
    with quiet_tfds():
        builder = open_builder(where, prepared)
        keys = feature_keys(where, builder.info)
        train = _open(where, builder, keys, "train")
        for split in test_splits(where, builder.info):
            test = _open(where, builder, keys, split)
            if split == "validation" or test.is_labeled():
                break
    return Splits(_split(train, crop), _split(test, crop), train.num_classes)


def _split(records: Records, crop: int) -> Split:
    images = StreamedImages(records, 0, len(records), crop)
    return Split(images, images.labels)


def _open(where: str, builder: Any, keys: tuple[str, str], split: str) -> Records:
    check_files(where, builder, split)
    image, label = (builder.info.features[key] for key in keys)
    channels, num_classes = image.shape[-1], getattr(label, "num_classes", None)
    if channels not in MODES or num_classes is None:
        raise ValueError(
            f"{where} has images of {channels} channels in {num_classes or 'unknown'} classes; "
            "expected 1 or 3 channels and labels of known classes, so choose another set, or "
            "data.stream=False."
        )
    files = builder.info.splits[split].file_instructions
    return Records(where, split, files, keys, channels, num_classes)
