"""TFDS sets read without TensorFlow: tiny hand-made ones, and the real CIFAR-10 where it is."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from cka_sr_jax.data import channel_statistics, load_tfds, tfds_reader
from tests.tfds_sets import (
    assert_holds,
    class_feature,
    examples,
    image_feature,
    load,
    tensor_feature,
    write_set,
)

REPOSITORY = Path(__file__).parents[2]
REAL_SETS = REPOSITORY / "../shared/tfds"

needs_cifar10 = pytest.mark.skipif(
    not (REAL_SETS / "cifar10").is_dir(), reason="CIFAR-10 is not here"
)


# ---- reading ----


def test_a_set_is_read_in_its_order(sets, cache, monkeypatch):
    monkeypatch.setattr(tfds_reader, "DECODE_BATCH", 3)  # 10 examples: batches of 3, 3, 3 and 1
    train, test = examples(10), examples(4, seed=1)
    write_set(sets / "tiny/1.0.0", {"train": train, "test": test})
    data = load(sets, cache, validation=0.2)
    assert_holds(data.train_images, data.train_labels, train[:8])
    assert_holds(data.validation_images, data.validation_labels, train[8:])
    assert_holds(data.test_images, data.test_labels, test)
    assert (data.name, data.num_classes) == ("tiny", 5)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int32
    assert isinstance(data.train_images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0] = 0


@pytest.mark.parametrize("supervised", [True, False])
def test_gray_images_of_unstated_size_and_plain_integer_labels(sets, cache, supervised):
    keys = ("picture", "digit") if supervised else ("image", "label")
    features = {keys[0]: image_feature(None, None, 1), keys[1]: tensor_feature("int32")}
    train = examples(6, shape=(5, 2, 1))
    splits = {"train": train, "validation": train[:5]}
    write_set(sets / "tiny/1.0.0", splits, features, supervised=supervised, keys=keys)
    data = load(sets, cache)
    assert_holds(data.train_images, data.train_labels, train)
    assert_holds(data.test_images, data.test_labels, train[:5])
    assert data.num_classes == 5  # the largest label + 1


# ---- the cache ----


def test_the_cache_is_used_until_the_set_changes(sets, cache, monkeypatch):
    splits = {"train": examples(4), "test": examples(2)}
    folder = write_set(sets / "tiny/1.0.0", splits)
    first = load(sets, cache)
    with monkeypatch.context() as patch:
        patch.setattr(tfds, "builder_from_directory", None)  # decoding it again would raise
        again = load(sets, cache)
    np.testing.assert_array_equal(first.train_images, again.train_images)
    assert again.num_classes == 5
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_set(folder, splits | {"test": examples(3)})
    assert len(load(sets, cache).test_labels) == 3
    assert len(list(cache.iterdir())) == 2


def test_the_default_cache_follows_xdg(sets, tmp_path, monkeypatch):
    write_set(sets / "tiny/1.0.0", {"train": examples(4), "test": examples(2)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(sets, "")
    assert [path.name[:11] for path in (tmp_path / "xdg/cka_sr_jax").iterdir()] == ["tiny-1.0.0-"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(sets, "")
    assert len(list((tmp_path / "home/.cache/cka_sr_jax").iterdir())) == 1


@pytest.mark.parametrize("damage", ["train_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("length", [0, 10, 140, None, "one bit"])
def test_a_damaged_cache_is_decoded_again(sets, cache, damage, length):
    train = examples(12)
    write_set(sets / "tiny/1.0.0", {"train": train, "test": train})
    load(sets, cache)
    (folder,) = cache.iterdir()
    if length is None:
        (folder / damage).unlink()
    elif length == "one bit":
        *content, last = (folder / damage).read_bytes()
        (folder / damage).write_bytes(bytes([*content, last ^ 1]))
    else:
        content = (folder / damage).read_bytes()
        (folder / damage).write_bytes(content[: min(length, len(content) - 1)])
    data = load(sets, cache)
    assert_holds(data.train_images, data.train_labels, train)
    assert_holds(data.test_images, data.test_labels, train)
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("field", ["num_classes", "digests"])
def test_a_cache_whose_notes_were_edited_is_decoded_again(sets, cache, field):
    write_set(sets / "tiny/1.0.0", {"train": examples(12), "test": examples(12)})
    classes = load(sets, cache).num_classes
    (folder,) = cache.iterdir()
    notes = json.loads((folder / "meta.json").read_text())
    edited = {**notes, field: {"num_classes": 50, "digests": {}}[field]}
    (folder / "meta.json").write_text(json.dumps(edited))
    assert load(sets, cache).num_classes == classes
    assert json.loads((folder / "meta.json").read_text()) == notes


KILLED = """
import os, signal, sys
import numpy as np
from cka_sr_jax.data import load_tfds
np.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the images
load_tfds("tiny", sys.argv[1], sys.argv[2])
"""


def test_a_killed_run_leaves_no_cache_that_a_later_one_would_use(sets, cache):
    train = examples(6)
    write_set(sets / "tiny/1.0.0", {"train": train, "test": train})
    command = [sys.executable, "-W", "error", "-c", KILLED, str(sets), str(cache)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout + killed.stderr == ""  # nor did TFDS write to the console
    (leftover,) = cache.iterdir()
    assert (leftover / "train_images.npy").is_file()
    data = load(sets, cache)
    assert_holds(data.train_images, data.train_labels, train)
    assert leftover.exists()  # it may belong to another run that is still decoding
    (done,) = (path for path in cache.iterdir() if path != leftover)
    (done / "meta.json").unlink()
    os.utime(leftover, (0, 0))
    load(sets, cache)
    assert list(cache.iterdir()) == [done]


def test_an_interrupted_run_clears_up(sets, cache, monkeypatch):
    write_set(sets / "tiny/1.0.0", {"train": examples(6), "test": examples(6)})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(sets, cache)
    assert list(cache.iterdir()) == []
    assert not logging.get_absl_logger().filters


def test_two_runs_may_decode_at_once(sets, cache, monkeypatch):
    train = examples(6)
    write_set(sets / "tiny/1.0.0", {"train": train, "test": train})
    replace = os.replace

    def overtaken(*paths):
        monkeypatch.setattr(os, "replace", replace)
        load(sets, cache)  # the other run, which is done first
        replace(*paths)

    monkeypatch.setattr(os, "replace", overtaken)
    data = load(sets, cache)
    assert_holds(data.train_images, data.train_labels, train)
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_refused(sets, tmp_path):
    write_set(sets / "tiny/1.0.0", {"train": examples(2), "test": examples(2)})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written to .*; set data\.cache_dir to a"):
        load(sets, tmp_path / "file")


def test_progress_is_logged_when_decoding_takes_long(sets, cache, monkeypatch, caplog):
    monkeypatch.setattr(tfds_reader, "PROGRESS_SECONDS", -1)
    monkeypatch.setattr(tfds_reader, "DECODE_BATCH", 4)
    write_set(sets / "tiny/1.0.0", {"train": examples(6), "test": examples(2)})
    with caplog.at_level("INFO", logger="absl"):
        load(sets, cache)
    progress = [record.getMessage().split(": ")[-1] for record in caplog.records]
    done = ("4 of 6", "6 of 6", "2 of 2")
    assert progress == [f"decoded {count} images." for count in done]


# ---- refusals ----


def other_features(**features):
    return {"image": image_feature(4, 3, 3), "label": class_feature(5)} | features


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            other_features(image=image_feature(4, 3, 1, dtype="float32")),
            "'image' as Image.*float32",
        ),
        (other_features(image=tensor_feature("uint8", 4)), r"'image' as Tensor\(shape=\(4,\)"),
        (other_features(label=tensor_feature("int64", 2)), r"'label' as Tensor\(shape=\(2,\)"),
        (other_features(label=tensor_feature("float32")), "'label' as Tensor.*float32"),
        ({"image": image_feature(4, 3, 3)}, "'label' as missing"),
    ],
)
def test_other_features_are_refused(sets, cache, features, message):
    write_set(sets / "tiny/1.0.0", {"train": examples(2), "test": examples(2)}, features)
    with pytest.raises(ValueError, match=rf"{message}.*; expected a uint8 image and one integer"):
        load(sets, cache)
    assert list(cache.iterdir()) == []


def test_images_of_several_sizes_are_refused(sets, cache):
    features = other_features(image=image_feature(None, None, 3))
    train = examples(2) + examples(1, shape=(4, 4, 3))
    write_set(sets / "tiny/1.0.0", {"train": train, "test": examples(2)}, features)
    with pytest.raises(ValueError, match=r"shape \(4, 3, 3\) and of shape \(4, 4, 3\); expected"):
        load(sets, cache)


def test_images_whose_size_differs_between_the_splits_are_refused(sets, cache):
    features = other_features(image=image_feature(None, None, 3))
    splits = {"train": examples(2), "test": examples(2, shape=(4, 4, 3))}
    write_set(sets / "tiny/1.0.0", splits, features)
    with pytest.raises(ValueError, match=r"shape \(4, 3, 3\) and of shape \(4, 4, 3\); expected"):
        load(sets, cache)


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class_are_refused(sets, cache, label):
    test = [(image, label) for image, _ in examples(2)]
    write_set(sets / "tiny/1.0.0", {"train": examples(2), "test": test})
    with pytest.raises(ValueError, match=rf"labels from {label} to {label} in its split 'test'"):
        load(sets, cache)


@pytest.mark.parametrize("splits", [["train"], ["test"], ["validation", "test"], []])
def test_a_set_without_train_or_test_is_refused(sets, cache, splits):
    write_set(sets / "tiny/1.0.0", {split: examples(2) for split in splits})
    listed = ", ".join(sorted(splits)) or r"\(none\)"
    with pytest.raises(ValueError, match=rf"has the splits {listed}; expected 'train' and"):
        load(sets, cache)


def edit_info(folder, **fields):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | fields))


def test_damaged_sets_are_refused(sets, cache):
    def fresh(version):
        splits = {"train": examples(200), "test": examples(2)}
        folder = write_set(sets / f"tiny/{version}.0.0", splits)
        return folder, next(folder.glob("*train*"))

    folder, _ = fresh(1)
    edit_info(folder, fileFormat="tfrecord")
    with pytest.raises(ValueError, match="in the format 'tfrecord'; expected 'array_record'"):
        load(sets, cache)
    _, records = fresh(2)
    records.unlink()
    with pytest.raises(ValueError, match=rf"incomplete \(split 'train': {records.name} missing"):
        load(sets, cache)
    _, records = fresh(3)
    records.write_bytes(records.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be (read|opened).*; prepare it again"):
        load(sets, cache)
    folder, _ = fresh(4)
    (folder / "dataset_info.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"unreadable dataset_info\.json; prepare it again"):
        load(sets, cache)
    folder, _ = fresh(5)
    (folder / "features.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be opened"):
        load(sets, cache)
    write_set(sets / "tiny/6.0.0", {"train": [], "test": examples(2)})
    with pytest.raises(ValueError, match=r"incomplete \(split 'train': no examples\)"):
        load(sets, cache)
    folder, records = fresh(7)
    records.write_bytes((folder / records.name.replace("train", "test")).read_bytes())
    with pytest.raises(ValueError, match=r"has 2 examples in .* dataset_info.json says 200; prep"):
        load(sets, cache)


# ---- the real sets ----


@needs_cifar10
def test_cifar10_is_what_pillow_decodes(sets, cache):
    """Two of its files, as a set of their own; the images come from the raw records' PNGs."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    (real,) = (REAL_SETS / "cifar10").iterdir()
    folder = sets / "cifar10" / real.name
    folder.mkdir(parents=True)
    for file in ("dataset_info.json", "features.json", "label.labels.txt"):
        (folder / file).write_text((real / file).read_text())
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    shards = sorted(real.glob("*-test.array_record-*"))
    for split, shard in zip(splits, shards, strict=False):
        split["shardLengths"] = ["2500"]
        copy = folder / f"cifar10-{split['name']}.array_record-00000-of-00001"
        copy.symlink_to(shard.resolve())
    edit_info(folder, splits=splits)
    data = load(sets, cache, name="cifar10", validation=0.1)
    assert data.train_images.shape == (2250, 32, 32, 3)
    assert data.validation_images.shape == (250, 32, 32, 3)
    images = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    for shard, ours, our_labels in (
        (shards[0], images, labels),
        (shards[1], data.test_images, data.test_labels),
    ):
        source = ArrayRecordDataSource([str(shard)])
        for index in (0, 1, 999, 1000, 1001, 2249, 2250, 2499):
            feature = tf_example_pb2.Example.FromString(source[index]).features.feature
            picture = Image.open(io.BytesIO(feature["image"].bytes_list.value[0]))
            np.testing.assert_array_equal(ours[index], np.asarray(picture))
            assert our_labels[index] == feature["label"].int64_list.value[0]


@pytest.mark.slow
@needs_cifar10
def test_the_whole_of_cifar10_has_its_known_statistics(cache):
    train, test, num_classes = load_tfds("cifar10", REAL_SETS, cache)
    assert (train[0].shape, test[0].shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert np.bincount(train[1], minlength=num_classes).tolist() == [5000] * 10
    assert np.bincount(test[1], minlength=num_classes).tolist() == [1000] * 10
    mean, std = channel_statistics(train[0])
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=1e-4)
