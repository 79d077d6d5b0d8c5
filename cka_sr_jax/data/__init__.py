"""Image-classification sets in memory, and their batching and augmentation on the device."""

from cka_sr_jax.data.dataset import Dataset, load_dataset
from cka_sr_jax.data.digits import load_digits
from cka_sr_jax.data.pipeline import (
    augment,
    batch_indices,
    channel_statistics,
    epoch_order,
    eval_batches,
    normalize,
)
from cka_sr_jax.data.tfds_reader import load_tfds

__all__ = [
    "Dataset",
    "augment",
    "batch_indices",
    "channel_statistics",
    "epoch_order",
    "eval_batches",
    "load_dataset",
    "load_digits",
    "load_tfds",
    "normalize",
]
