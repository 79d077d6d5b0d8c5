"""An image-classification set as arrays, found by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cka_sr_jax.data.digits import load_digits
from cka_sr_jax.data.splits import Images, Labels, Split, Splits
from cka_sr_jax.data.streamed import StreamedImages
from cka_sr_jax.data.tfds_reader import load_tfds
from cka_sr_jax.data.tfds_stream import stream_tfds

DIGITS = "digits"


class Dataset(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N] per split.

    They are arrays (maybe memory-mapped, read-only) or, of a streamed set, `StreamedImages` and
    `StreamedLabels`. The validation split has length 0 where none was asked for.
    """

    name: str
    train_images: Images
    train_labels: Labels
    validation_images: Images
    validation_labels: Labels
    test_images: Images
    test_labels: Labels
    num_classes: int

    @property
    def is_streamed(self) -> bool:
        """Whether the images stay on the disk."""
        return isinstance(self.train_images, StreamedImages)


def load_dataset(config: Any) -> Dataset:
    """The data set that `config`, a run's `config.data`, describes.

    Args:
      config: a ConfigDict with the fields
        name: "digits", or the name of a TFDS set, such as "cifar10" or "set/configuration";
        dir: the folder that holds TFDS sets prepared as array_record; "digits" needs none;
        cache_dir: where decoded images are kept; "" is $XDG_CACHE_HOME/cka_sr_jax, or
          ~/.cache/cka_sr_jax;
        validation: the share of the train split, its last images, held out for validation. (The
          digits' train split is in a fixed random order, so theirs is a random sample.)
        downsample: 1, or the side of the squares of pixels that are averaged into one;
        stream: where it is there and True, nothing is decoded ahead, and images of any size are cut
          to squares of `crop` pixels; cache_dir and downsample have no meaning then;
        pad: where it is there, the pixels to add on each side, fewer than the images have.

    Raises:
      ValueError: a field is missing or wrong, or the set is not there or cannot be used.
    """
    for field in ("name", "dir", "cache_dir", "validation", "downsample"):
        if field not in config:
            raise ValueError(f"The data configuration has no field {field!r}; add it.")
    if not isinstance(config.name, str) or not config.name:
        raise ValueError(
            f"data.name is {config.name!r}; expected {DIGITS!r} or the name of a TFDS set, such "
            "as 'cifar10'."
        )
    _check_validation(config.validation)
    if config.get("stream", False):
        train, test, num_classes = _stream(config)
    elif config.name == DIGITS:
        try:
            cache = _cache(config)
        except RuntimeError:  # no home folder, which digits can do without
            cache = None
        train, test, num_classes = load_digits(cache)
    else:
        cache = _cache(config)
        train, test, num_classes = load_tfds(config.name, config.dir, cache)
    if config.downsample != 1:
        train, test = (
            Split(_downsample(images, config.downsample), labels)
            for images, labels in (train, test)
        )
    _check_pad(train.images, config.get("pad", 0))
    train, validation = _hold_out(train, config.validation)
    return Dataset(config.name, *train, *validation, *test, num_classes)


def _stream(config: Any) -> Splits:
    if config.name == DIGITS:
        raise ValueError(
            f"data.stream=True is for TFDS sets and {DIGITS!r} fits in memory; set data.stream="
            "False, or name a TFDS set, such as 'imagenet2012'."
        )
    if config.downsample != 1:
        raise ValueError(
            f"data.downsample is {config.downsample} and data.stream=True cuts images to crops of "
            f"{config.crop} pixels; leave it at 1, and use smaller crops."
        )
    return stream_tfds(config.name, config.dir, config.crop)


def _check_validation(fraction: Any) -> None:
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not is_number or not 0 <= fraction < 1:
        raise ValueError(
            f"data.validation is {fraction!r}; expected the share of the train split to hold out, "
            "at least 0 (none) and less than 1."
        )


def _cache(config: Any) -> Path:
    return Path(config.cache_dir).expanduser() if config.cache_dir else user_cache()


def user_cache() -> Path:
    """The folder of what can be made again, `~/.cache/cka_sr_jax`.

    Raises:
      RuntimeError: the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return (base if base.is_absolute() else Path.home() / ".cache") / "cka_sr_jax"


def _check_pad(images: Images, pad: int) -> None:
    side = min(images.shape[1:3])
    if pad >= side:
        raise ValueError(
            f"data.pad={pad}: expected fewer pixels than the {side} of the images' shorter side, "
            "such as 4 for images of 32x32."
        )


def _downsample(images: Images, side: int) -> np.ndarray:
    """The mean of each square of pixels, rounded."""
    n, height, width, channels = images.shape
    if side < 1 or height % side or width % side:
        raise ValueError(
            f"data.downsample is {side}, which does not divide images of {height}x{width}; choose "
            "a divisor of both, such as 2, or 1 to leave them."
        )
    squares = (n, height // side, side, width // side, side, channels)
    result = np.empty((n, height // side, width // side, channels), np.uint8)
    for i in range(0, n, 1000):  # in parts: the means are eight times the size of the pixels
        part = images[i : i + 1000].reshape(-1, *squares[1:])
        result[i : i + 1000] = np.rint(part.mean(axis=(2, 4)))
    return result


def _hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """The split without its last `fraction`, and that fraction; a memmap stays one."""
    images, labels = split
    kept = len(labels) - round(fraction * len(labels))
    if kept == 0 or (fraction > 0 and kept == len(labels)):
        raise ValueError(
            f"data.validation is {fraction!r}, which splits {len(labels)} training images into "
            f"{kept} and {len(labels) - kept}; expected a share that leaves images in both, or 0."
        )
    if isinstance(images, StreamedImages):
        parts = images.part(0, kept), images.part(kept, len(images))
        return Split(parts[0], parts[0].labels), Split(parts[1], parts[1].labels)
    return Split(images[:kept], labels[:kept]), Split(images[kept:], labels[kept:])
