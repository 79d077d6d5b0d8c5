"""Which folder holds a set: versions, configurations, and what is refused."""

import pytest

from tests.tfds_sets import assert_holds, examples, load, write_set


def test_the_newest_version_is_taken(sets, cache):
    for seed, version in enumerate(("2.0.0", "10.0.0", "9.9.9")):
        splits = {"train": examples(2, seed), "test": examples(2, seed)}
        write_set(sets / "tiny" / version, splits)
    data = load(sets, cache)
    assert_holds(data.train_images, data.train_labels, examples(2, seed=1))


def test_configurations(sets, cache):
    for seed, configuration in enumerate(("small", "large")):
        splits = {"train": examples(2, seed), "test": examples(2, seed)}
        write_set(sets / "tiny" / configuration / "1.0.0", splits)
    with pytest.raises(ValueError, match="expected one of 'tiny/large', 'tiny/small'"):
        load(sets, cache)
    data = load(sets, cache, name="tiny/large")
    assert_holds(data.train_images, data.train_labels, examples(2, seed=1))
    write_set(sets / "tiny2/only/1.0.0", {"train": examples(2), "test": examples(3)})
    assert len(load(sets, cache, name="tiny2").test_labels) == 3


@pytest.mark.parametrize("name", ["../tiny", "/tiny", "tiny/..", "tiny:1.0.0", "a b", "tiny/a/b"])
def test_a_name_that_is_no_name_is_refused(sets, cache, name):
    with pytest.raises(ValueError, match=r"^data\.name is .*; expected 'digits', or a TFDS set"):
        load(sets, cache, name=name)


def test_a_set_that_is_not_there_is_refused(sets, cache):
    with pytest.raises(ValueError, match=r"^data\.dir is empty; expected the folder"):
        load("", cache)
    with pytest.raises(ValueError, match=r"sets', which is not a folder; .*array_record"):
        load(sets, cache)
    sets.mkdir()
    with pytest.raises(ValueError, match=r"it holds no prepared set at all.*pip install"):
        load(sets, cache)
    (sets / "tiny_images/1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"it holds no prepared set at all"):
        load(sets, cache, name="tiny_images")
    write_set(sets / "tiny/1.0.0", {"train": examples(2), "test": examples(2)})
    expected = r"it holds tiny; did you mean 'tiny'\?.*builder\('tinny'.*'array_record'"
    with pytest.raises(ValueError, match=expected):
        load(sets, cache, name="tinny")
    assert not cache.exists()
