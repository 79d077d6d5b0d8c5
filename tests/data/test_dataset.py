"""Data sets by name, and how the validation split is taken."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cka_sr_jax.data import load_dataset


def data_config(**fields):
    return ConfigDict(
        {"name": "digits", "dir": "", "cache_dir": "", "validation": 0.0, "downsample": 1} | fields
    )


def test_a_pad_is_smaller_than_the_images():
    assert load_dataset(data_config(pad=7)).train_images.shape[1:] == (8, 8, 1)
    with pytest.raises(ValueError, match=r"data.pad=8: expected fewer pixels than the 8 of the im"):
        load_dataset(data_config(pad=8))


def test_without_validation_nothing_is_held_out():
    data = load_dataset(data_config())
    assert data.name == "digits"
    assert (len(data.train_labels), len(data.test_labels)) == (1437, 360)
    assert data.validation_images.shape == (0, 8, 8, 1)
    assert data.validation_labels.shape == (0,)


def test_validation_is_the_end_of_the_train_split():
    whole = load_dataset(data_config())
    data = load_dataset(data_config(validation=0.25))
    assert len(data.validation_labels) == round(0.25 * 1437)
    images = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    np.testing.assert_array_equal(images, whole.train_images)
    np.testing.assert_array_equal(labels, whole.train_labels)
    np.testing.assert_array_equal(data.test_images, whole.test_images)
    # The digits' train split is shuffled, so its end has every class.
    assert np.bincount(data.validation_labels).min() > 20


@pytest.mark.parametrize("validation", [1.0, -0.1, 7, "0.1", True, None, float("nan")])
def test_a_wrong_validation_share_is_refused(validation):
    with pytest.raises(ValueError, match=r"^data\.validation is .*; expected the share"):
        load_dataset(data_config(validation=validation))


@pytest.mark.parametrize("validation", [1e-6, 1 - 1e-6])
def test_a_share_that_leaves_a_split_empty_is_refused(validation):
    with pytest.raises(ValueError, match="expected a share that leaves images in both"):
        load_dataset(data_config(validation=validation))


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_missing_name_is_refused(name):
    with pytest.raises(ValueError, match=r"^data\.name is .*; expected 'digits' or"):
        load_dataset(data_config(name=name))


def test_a_missing_field_is_refused():
    config = data_config()
    del config.cache_dir
    with pytest.raises(ValueError, match="no field 'cache_dir'; add it"):
        load_dataset(config)


def test_downsampling_is_the_mean_of_squares():
    whole, small = load_dataset(data_config()), load_dataset(data_config(downsample=2))
    assert small.train_images.shape == (len(whole.train_labels), 4, 4, 1)
    assert small.train_images.dtype == np.uint8
    for i, y, x in ((0, 0, 0), (-1, 3, 2)):
        square = whole.train_images[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, 0].astype(int)
        assert small.train_images[i, y, x, 0] == np.rint(square.sum() / 4)
    assert small.test_images.shape[1:] == (4, 4, 1)
    for side in (3, 16, 0):
        with pytest.raises(ValueError, match=f"data.downsample is {side}, which does not divide"):
            load_dataset(data_config(downsample=side))
