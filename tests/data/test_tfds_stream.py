"""Prepared sets that are streamed: their splits, and those that are refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cka_sr_jax.data import StreamedImages, load_dataset, stream_tfds
from tests.tfds_sets import (
    class_feature,
    image_feature,
    jpeg,
    photographs,
    tensor_feature,
    write_photographs,
    write_set,
)

FEATURES = {"image": image_feature(None, None, 3), "label": class_feature(5)}


def config(sets, **fields):
    return ConfigDict(
        {
            "name": "tiny", "dir": str(sets), "cache_dir": str(sets / "none"), "validation": 0.0,
            "downsample": 1, "stream": True, "crop": 16,
        }
        | fields
    )  # fmt: skip


def test_a_streamed_set_has_the_splits_of_one_in_memory_and_no_cache(sets):
    write_photographs(sets / "tiny/1.0.0", train=20, test=4)
    data = load_dataset(config(sets, validation=0.25))
    assert data.is_streamed
    assert data.num_classes == 5
    assert data.train_images.shape == (15, 16, 16, 3)
    assert data.validation_images.shape == (5, 16, 16, 3)
    assert data.test_images.shape == (4, 16, 16, 3)
    assert [len(labels) for labels in (data.train_labels, data.validation_labels)] == [15, 5]
    np.testing.assert_array_equal(data.train_labels[:], np.arange(15) % 5)
    np.testing.assert_array_equal(data.validation_labels[:], np.arange(15, 20) % 5)
    assert not (sets / "none").exists()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_test_split_without_labels_is_left_aside_for_the_validation_split(sets, label):
    """As in ImageNet."""
    images = photographs(6)
    test = [(image, label) for image, _ in images[:2]]
    splits = {"train": images, "validation": images[:3], "test": test}
    write_set(sets / "tiny/1.0.0", splits, FEATURES, encode=jpeg)
    labels = stream_tfds("tiny", sets, 8).test.labels
    assert labels[:].tolist() == ([0, 1, 2] if label == -1 else [3, 3])


def test_gray_images_have_one_channel(sets):
    gray = [(photographs(1)[0][0][:, :, :1], 0)]
    splits = {"train": gray, "test": gray}
    features = FEATURES | {"image": image_feature(None, None, 1)}
    write_set(sets / "tiny/1.0.0", splits, features)
    images = stream_tfds("tiny", sets, 8).train.images
    assert images[:].shape == images.shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"label": tensor_feature("int64")},
            "images of 3 channels in unknown classes; expected 1 or 3 channels and labels of known",
        ),
        ({"image": image_feature(None, None, 4)}, "images of 4 channels in 5 classes; expected"),
        ({"image": image_feature(None, None, 3, dtype="uint16")}, "expected a uint8 image and"),
    ],
)
def test_sets_that_cannot_be_streamed_are_refused(sets, features, message):
    splits = {"train": photographs(2), "test": photographs(2)}
    write_set(sets / "tiny/1.0.0", splits, FEATURES | features)
    with pytest.raises(ValueError, match=message):
        stream_tfds("tiny", sets, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "digits"}, "data.stream=True is for TFDS sets and 'digits' fits in memory"),
        ({"downsample": 2}, "data.downsample is 2 and data.stream=True cuts images to crops of 16"),
        ({"pad": 16}, "data.pad=16: expected fewer pixels than the 16"),
        ({"name": "../tiny"}, r"data.name is '../tiny'; expected 'digits', or a TFDS set"),
        ({"validation": 1e-6}, "expected a share that leaves images in both"),
    ],
)
def test_settings_that_cannot_work_are_refused(sets, fields, message):
    write_photographs(sets / "tiny/1.0.0", train=4, test=2)
    with pytest.raises(ValueError, match=message):
        load_dataset(config(sets, **fields))


def test_a_set_in_memory_is_not_streamed(sets, tmp_path):
    same = [(np.zeros((4, 3, 3), np.uint8), 0)] * 2
    write_set(sets / "tiny/1.0.0", {"train": same, "test": same})
    data = load_dataset(config(sets, stream=False, cache_dir=str(tmp_path / "cache")))
    assert not data.is_streamed
    assert not isinstance(data.train_images, StreamedImages)
