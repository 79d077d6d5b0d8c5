"""The 1797 handwritten digits that come with scikit-learn: no download, trained on in seconds."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path

import numpy as np

from cka_sr_jax.data.splits import Split, Splits
from cka_sr_jax.data.tfds_cache import ARRAYS, make_cache, open_cached

NUM_CLASSES = 10
TEST_FRACTION = 0.2

# The split belongs to the data: every run, whatever its seed, is tested on the same images.
SPLIT_SEED = 20230715
FORMAT = 1  # of the images; a change makes cached copies stale


def load_digits(cache: Path | None = None) -> Splits:
    """Scikit-learn's digits in 10 classes.

    Images are uint8 [N, 8, 8, 1] with the ink 0..16 scaled to 0..255, labels int32 [N]. The test
    images are a fifth of each class; both splits are in a fixed random order.

    Args:
      cache: a folder to keep them in, if it can be written, since importing scikit-learn takes most
        of a second; None: no cache.
    """
    if cache is None:
        return _from_sklearn()
    version = importlib.metadata.version("scikit-learn")
    folder = cache / f"digits-{version}-{TEST_FRACTION}-{SPLIT_SEED}-{FORMAT}"
    if (found := open_cached(folder)) is not None:
        return found
    digits = _from_sklearn()

    def write(folder: Path) -> int:
        for name, array in zip(ARRAYS, (*digits.train, *digits.test), strict=True):
            np.save(folder / f"{name}.npy", array)
        return NUM_CLASSES

    with contextlib.suppress(OSError):
        make_cache(folder, write)
    return digits


def _from_sklearn() -> Splits:
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
