"""The splits of an image-classification set, as its reader gives them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and their labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """What there is to train on and to test on; validation images are held out later."""

    train: Split
    test: Split
    num_classes: int
