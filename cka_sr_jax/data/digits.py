"""The 1797 handwritten digits that come with scikit-learn: no download, trained on in seconds."""

from __future__ import annotations

import numpy as np

from cka_sr_jax.data.splits import Split, Splits

NUM_CLASSES = 10
TEST_FRACTION = 0.2

# The split belongs to the data: every run, whatever its seed, is tested on the same images.
SPLIT_SEED = 20230715


def load_digits() -> Splits:
    """Scikit-learn's digits in 10 classes.

    Images are uint8 [N, 8, 8, 1] with the ink 0..16 scaled to 0..255, labels int32 [N]. The test
    images are a fifth of each class; both splits are in a fixed random order.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=SPLIT_SEED
    )
    return Splits(
        Split(images[train], labels[train]), Split(images[test], labels[test]), NUM_CLASSES
    )
