"""Records of a set on the disk, one by one."""

import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cka_sr_jax.data import stream_tfds
from tests.tfds_sets import class_feature, image_feature, jpeg, photographs, write_photographs
from tests.tfds_sets import write_set as write


def test_a_record_is_what_tfds_decodes(sets):
    folder = write_photographs(sets / "tiny/1.0.0", train=7, test=1)
    records = stream_tfds("tiny", sets, 8).train.images.records
    expected = tfds.builder_from_directory(folder).as_data_source(split="train")
    assert len(records) == len(expected) == 7
    for i in (6, 0, 3):
        image, label = records.decoded(i)
        np.testing.assert_array_equal(np.asarray(image), expected[i]["image"])
        assert label == expected[i]["label"] == records[i].label


def test_records_go_to_another_process_and_are_called_the_same_there(sets):
    write_photographs(sets / "tiny/1.0.0", train=3, test=1)
    records = stream_tfds("tiny", sets, 8).train.images.records
    assert records[1].label == 1
    other = pickle.loads(pickle.dumps(records))
    assert other[1] == records[1]
    assert repr(other) == repr(records)
    assert "0x" not in repr(records)


def test_where_the_system_limits_no_open_files(sets, monkeypatch):
    """As on Windows, which has no module for the limit."""
    monkeypatch.setitem(sys.modules, "resource", None)
    write_photographs(sets / "tiny/1.0.0", train=3, test=1)
    assert stream_tfds("tiny", sets, 8).train.images.records[1].label == 1


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((b"no image", 1), r"record 1 cannot be decoded \(cannot identify image file"),
        ((jpeg(photographs(1)[0][0])[:-200], 1), r"record 1 cannot be decoded \(image file is tr"),
        ((jpeg(photographs(1)[0][0]), 5), "record 1 has the label 5, and labels are 0 to 4;"),
        ((jpeg(photographs(1)[0][0]), -1), "record 1 has the label -1, and labels are"),
        ((jpeg(photographs(1)[0][0]), []), r"record 1 cannot be read \(.*index out of range"),
    ],
)
def test_a_damaged_record_is_one_sentence_that_names_it(sets, example, message):
    good = (jpeg(photographs(1)[0][0]), 2)
    features = {"image": image_feature(None, None, 3), "label": class_feature(5)}
    write(sets / "tiny/1.0.0", {"train": [good, example], "test": [good]}, features, encode=bytes)
    records = stream_tfds("tiny", sets, 8).train.images.records
    assert records.decoded(0)[1] == 2
    with pytest.raises(ValueError, match=message) as error:
        records.decoded(1)
    assert str(error.value).startswith("The TFDS set 'tiny' in")
    assert "split 'train'" in str(error.value)
    assert str(error.value).endswith("; prepare the set again.")
