"""What a prepared set's own notes may not ask for."""

import pytest

from cka_sr_jax.data import stream_tfds
from tests.tfds_sets import load, write_photographs


def test_files_outside_of_the_sets_folder_are_refused(sets, cache):
    folder = write_photographs(sets / "tiny/1.0.0", train=2, test=2)
    for file in folder.glob("tiny-*"):
        file.rename(sets / "tiny" / file.name)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("{DATASET}-{SPLIT}", "../{DATASET}-{SPLIT}"))
    for read in (lambda: stream_tfds("tiny", sets, 8), lambda: load(sets, cache)):
        with pytest.raises(ValueError, match="names files outside of its folder for split 'train'"):
            read()
