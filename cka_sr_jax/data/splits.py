"""The splits of an image-classification set, as its reader gives them."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from cka_sr_jax.data.streamed import StreamedImages, StreamedLabels

# Of a streamed set they are read where they are indexed.
Images: TypeAlias = np.ndarray | StreamedImages
Labels: TypeAlias = np.ndarray | StreamedLabels


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and their labels int32 [N]."""

    images: Images
    labels: Labels


class Splits(NamedTuple):
    """What there is to train on and to test on; validation images are held out later."""

    train: Split
    test: Split
    num_classes: int
