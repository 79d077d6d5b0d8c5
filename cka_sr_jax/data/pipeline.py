"""Batches as pure functions of (seed, step), and the augmentation of a batch on the device.

Which images a step trains on, and how each of them is augmented, depends on the run's seed, the
step and the image's place in the data set alone: a resumed run sees what an uninterrupted one does,
and so does a run whose batches are split over more devices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

STATISTICS_CHUNK = 1000  # images; the squares of one chunk are all that is held in memory


@functools.lru_cache(maxsize=256)  # up to 256 runs that train together share this cache
def epoch_order(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, " n"]:
    """The order of the examples in an epoch: a permutation of 0..n-1, int32 and read-only.

    Raises:
      ValueError: a negative seed, epoch or number of examples.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    order.setflags(write=False)  # it is shared by every caller
    return order


def batch_indices(
    seed: int, step: int, num_examples: int, batch_size: int
) -> Int[np.ndarray, " batch"]:
    """The examples of training step `step` = 0, 1, ..., as int32 indices.

    Each epoch has floor(n / batch_size) steps, which take `epoch_order` from its start; the
    n mod batch_size examples at its end are left out of that epoch.

    Raises:
      ValueError: a batch size outside 1..num_examples, or a negative seed or step.
    """
    epoch, place = place_in_epoch(step, num_examples, batch_size)
    return epoch_order(seed, epoch, num_examples)[place]


def place_in_epoch(step: int, num_examples: int, batch_size: int) -> tuple[int, slice]:
    """The epoch of a step, and where its batch is in the `epoch_order`.

    Raises:
      ValueError: a batch size outside 1..num_examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"The batch size is {batch_size}; expected 1 to {num_examples}, the number of training "
            "examples, so choose another."
        )
    epoch, step_in_epoch = divmod(step, num_examples // batch_size)
    return epoch, slice(step_in_epoch * batch_size, (step_in_epoch + 1) * batch_size)


def eval_batches(
    num_examples: int, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[np.ndarray, " batch"]]]:
    """Every example once and in order: (indices int32, weights float32), all of one size.

    The weights are 1, but for the last batch's padding, which has index 0 and weight 0.

    Raises:
      ValueError: a batch size below 1 (when the first batch is asked for).
    """
    if batch_size < 1:
        raise ValueError(f"The evaluation batch size is {batch_size}; expected 1 or more.")
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        is_real = indices < num_examples
        yield np.where(is_real, indices, 0).astype(np.int32), is_real.astype(np.float32)


def augment(
    key: PRNGKeyArray,
    indices: Int[Array, " batch"],
    images: Shaped[Array, "batch h w c"],
    *,
    flip: bool,
    pad: int,
    pad_mode: Literal["reflect", "zero"],
) -> Shaped[Array, "batch h w c"]:
    """A random flip and a random shift of each image.

    Each image is flipped left-right with probability 1/2 (with `flip`), then padded by `pad` pixels
    on every side and cropped back to its size at a uniform one of the (2 pad + 1)^2 places. Image
    i draws from fold_in(key, indices[i]), so its result does not depend on its place in the batch.

    Args:
      key: a key of the step.
      indices: each image's index in the data set.
      images: of any type, which is kept.
      flip, pad, pad_mode: static; "reflect" mirrors the image without repeating its edge.

    Raises:
      ValueError: a negative pad, or an unknown pad mode.
    """
    if pad < 0:
        raise ValueError(f"The augmentation's pad is {pad}; expected 0 (no shift) or more pixels.")
    if pad_mode not in ("reflect", "zero"):
        raise ValueError(
            f"The augmentation's pad mode is {pad_mode!r}; expected 'reflect' or 'zero'."
        )

    def augment_one(index: Int[Array, ""], image: Shaped[Array, "h w c"]) -> Array:
        flip_key, shift_key = jax.random.split(jax.random.fold_in(key, index))
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if pad:
            mode = "reflect" if pad_mode == "reflect" else "constant"
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
            row, column = jax.random.randint(shift_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        return image

    return jax.vmap(augment_one)(indices, images)


def normalize(
    images: Shaped[Array, "*batch h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*batch h w c"]:
    """(images / 255 - mean) / std per channel, in float32.

    Raises:
      ValueError: mean or std without one number per channel, or a std that is not positive.
    """
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"There are {len(mean)} means and {len(std)} standard deviations; expected one per "
            f"channel, and the images have {channels}."
        )
    if min(std) <= 0:
        raise ValueError(
            f"The standard deviations are {tuple(std)}; expected positive ones, so put 1 for a "
            "constant channel."
        )
    per_channel = (1,) * (images.ndim - 1) + (channels,)
    mean_row = jnp.asarray(mean, jnp.float32).reshape(per_channel)
    std_row = jnp.asarray(std, jnp.float32).reshape(per_channel)
    return (images.astype(jnp.float32) / 255 - mean_row) / std_row


def channel_statistics(
    images: UInt8[np.ndarray, "n h w c"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images / 255 per channel, over all pixels of all images.

    The sums are taken in integers, chunk by chunk, so they are exact and fit any memory-mapped set.

    Raises:
      ValueError: no images, or images of another type than uint8.
    """
    if images.dtype != np.uint8 or images.size == 0:
        raise ValueError(
            f"The images are {images.dtype} of shape {images.shape}; expected uint8 and at least "
            "one, to take their statistics."
        )
    channels = images.shape[-1]
    total = np.zeros(channels, np.int64)
    squares = np.zeros(channels, np.int64)
    for start in range(0, len(images), STATISTICS_CHUNK):
        chunk = images[start : start + STATISTICS_CHUNK].reshape(-1, images[0].size)
        total += chunk.sum(0, dtype=np.int64).reshape(-1, channels).sum(0)
        # 255^2 still fits into 16 bits
        chunk_squares = np.square(chunk, dtype=np.uint16).sum(0, dtype=np.int64)
        squares += chunk_squares.reshape(-1, channels).sum(0)
    pixels = images.size // channels
    mean = total / pixels
    variance = squares / pixels - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
