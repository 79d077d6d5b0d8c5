"""Batches of a set on the disk: a function of seed and step, whoever makes them."""

import numpy as np
import pytest

from cka_sr_jax.data import EvaluationBatches, TrainingBatches, batch_indices, stream_tfds
from cka_sr_jax.data.crops import center_crop, random_crop
from tests.tfds_sets import write_photographs

SEED, BATCH, SIDE, EXAMPLES = 3, 6, 12, 20
EPOCH = EXAMPLES // BATCH


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_photographs(folder / "tiny/1.0.0", train=EXAMPLES + 2, test=2)
    return stream_tfds("tiny", folder, SIDE).train.images.part(0, EXAMPLES)


def training(images, first=0, last=3 * EPOCH, rows=None, seed=SEED):
    rows = np.arange(BATCH) if rows is None else rows
    return TrainingBatches(images, seed, BATCH, range(first, last), rows)


def assert_same_batch(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
        assert array.dtype == other[name].dtype


def test_indexed_images_are_center_crops_and_labels_those_of_the_records(images):
    for indices in (slice(2, 5), np.array([7, 0])):
        numbers = np.arange(EXAMPLES)[indices]
        expected = [center_crop(images.records.decoded(int(i))[0], SIDE) for i in numbers]
        np.testing.assert_array_equal(images[indices], np.stack(expected))
        np.testing.assert_array_equal(images.labels[indices], numbers % 5)
    assert images[:0].shape == (0, SIDE, SIDE, 3)
    later = images.part(4, 9)
    np.testing.assert_array_equal(later[:2], images[4:6])
    np.testing.assert_array_equal(later.labels[:], np.arange(4, 9) % 5)


def test_an_epoch_has_each_image_once_in_the_order_of_the_seed(images):
    batches = training(images)
    seen = [batches[step]["index"] for step in range(EPOCH)]
    assert len(np.unique(np.concatenate(seen))) == EPOCH * BATCH
    for step in range(2 * EPOCH):
        expected = batch_indices(SEED, step, EXAMPLES, BATCH)
        np.testing.assert_array_equal(batches[step]["index"], expected)
        np.testing.assert_array_equal(batches[step]["label"], expected % 5)


def test_a_crop_is_a_function_of_seed_epoch_and_image(images):
    step = EPOCH + 1  # of epoch 1
    batch = training(images)[step]
    for index, crop in zip(batch["index"].tolist(), batch["image"], strict=True):
        rng = np.random.default_rng((SEED, 1, index, 1))
        image, _ = images.records.decoded(index)
        np.testing.assert_array_equal(crop, random_crop(rng, image, SIDE))
    first = {int(i): crop for s in range(EPOCH) for i, crop in rows(training(images)[s])}
    same = [(crop == first[int(i)]).all() for i, crop in rows(batch) if int(i) in first]
    assert same
    assert not any(same)  # another epoch, another crop
    assert not (training(images, seed=SEED + 1)[step]["image"] == batch["image"]).all()


def rows(batch):
    return zip(batch["index"], batch["image"], strict=True)


def test_a_run_that_starts_later_has_the_batch_that_would_have_been_next(images):
    whole, resumed = training(images), training(images, first=EPOCH + 2)
    assert len(resumed) == len(whole) - EPOCH - 2
    for i in range(2):
        assert_same_batch(resumed[i], whole[EPOCH + 2 + i])


def test_two_parts_are_the_whole_batch(images):
    whole = training(images)[4]
    parts = [training(images, rows=rows)[4] for rows in (np.arange(3), np.arange(3, BATCH))]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


@pytest.mark.parametrize("size", [8, 20, 32])
def test_evaluation_has_each_image_once_in_order(images, size):
    batches = EvaluationBatches(images, size, np.arange(size))
    found = [batches[i] for i in range(len(batches))]
    weights = np.concatenate([batch["weight"] for batch in found])
    assert len(weights) == -(-EXAMPLES // size) * size
    for name, expected in (("image", images[:]), ("label", images.labels[:])):
        array = np.concatenate([batch[name] for batch in found])
        np.testing.assert_array_equal(array[weights > 0], expected)
        assert not array[weights == 0].any()
    halves = [EvaluationBatches(images, size, half) for half in np.arange(size).reshape(2, -1)]
    for name, array in found[-1].items():
        parts = [half[len(batches) - 1][name] for half in halves]
        np.testing.assert_array_equal(np.concatenate(parts), array)


def test_all_at_once_is_refused(images):
    for array, what in ((images, "images"), (images.labels, "labels")):
        with pytest.raises(ValueError, match=f"needs the {what} of all 20 examples in memory, and"):
            np.asarray(array)
    with pytest.raises(ValueError, match=r"data\.stream=False, or do without"):
        np.unique(images.labels)


def test_a_source_is_called_the_same_everywhere(images):
    assert repr(training(images)) == repr(training(images))
    assert repr(training(images)) != repr(training(images, first=1))
    for source in (training(images), EvaluationBatches(images, 4, np.arange(4))):
        assert "0x" not in repr(source)
