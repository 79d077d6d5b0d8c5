"""Image-classification sets in memory or streamed, their batching, and their augmentation."""

from cka_sr_jax.data.dataset import Dataset, load_dataset, user_cache
from cka_sr_jax.data.digits import load_digits
from cka_sr_jax.data.pipeline import (
    augment,
    batch_indices,
    channel_statistics,
    epoch_order,
    eval_batches,
    normalize,
)
from cka_sr_jax.data.prefetch import Prefetched
from cka_sr_jax.data.splits import Images, Labels
from cka_sr_jax.data.streamed import EvaluationBatches, StreamedImages, TrainingBatches
from cka_sr_jax.data.tfds_reader import load_tfds
from cka_sr_jax.data.tfds_stream import stream_tfds

__all__ = [
    "Dataset",
    "EvaluationBatches",
    "Images",
    "Labels",
    "Prefetched",
    "StreamedImages",
    "TrainingBatches",
    "augment",
    "batch_indices",
    "channel_statistics",
    "epoch_order",
    "eval_batches",
    "load_dataset",
    "load_digits",
    "load_tfds",
    "normalize",
    "stream_tfds",
    "user_cache",
]
