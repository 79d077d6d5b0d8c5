"""The digits are scikit-learn's, and their test split never changes."""

import subprocess
import sys

import numpy as np
from sklearn import datasets

from cka_sr_jax.data import load_dataset, load_digits
from cka_sr_jax.training import default_config


def test_the_digits_are_scikit_learns():
    (train, train_labels), (test, test_labels), num_classes = load_digits()
    images = np.concatenate([train, test])
    labels = np.concatenate([train_labels, test_labels])
    assert (images.dtype, images.shape, num_classes) == (np.uint8, (1797, 8, 8, 1), 10)
    assert labels.dtype == np.int32
    assert (images.min(), images.max()) == (0, 255)
    raw, raw_labels = datasets.load_digits(return_X_y=True)
    ink = np.round(images.reshape(-1, 64) * (16 / 255))
    ours = sorted(zip(map(bytes, ink.astype(np.uint8)), labels.tolist(), strict=True))
    theirs = sorted(zip(map(bytes, raw.astype(np.uint8)), raw_labels.tolist(), strict=True))
    assert ours == theirs


def test_a_cached_copy_is_the_same_and_a_damaged_one_is_made_again(tmp_path):
    def arrays(digits):
        return [*digits.train, *digits.test]

    made, expected = load_digits(tmp_path), load_digits()
    folder = next(tmp_path.iterdir())
    for damage in (False, True):
        if damage:
            (folder / "test_labels.npy").write_bytes(b"")
        for digits in (made, load_digits(tmp_path), load_digits(tmp_path)):
            for one, two in zip(arrays(digits), arrays(expected), strict=True):
                assert one.dtype == two.dtype
                np.testing.assert_array_equal(one, two)
            assert digits.num_classes == 10


def test_the_second_time_scikit_learn_is_not_imported(tmp_path):
    load_digits(tmp_path)
    program = (
        "import sys; from pathlib import Path; from cka_sr_jax.data import load_digits; "
        f"load_digits(Path({str(tmp_path)!r})); assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_digits_need_no_home_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(load_dataset(default_config().data).test_labels) == 360


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert len(load_digits(tmp_path / "file").train[1]) == 1437


def test_the_digits_test_split_is_stratified_and_fixed():
    (_, train_labels), (test, test_labels), _ = load_digits()
    of_class = np.bincount(train_labels) + np.bincount(test_labels)
    assert np.all(np.abs(np.bincount(test_labels) - 0.2 * of_class) <= 1)
    # Written down once: every figure on the digits depends on these images.
    assert len(test_labels) == 360
    assert test_labels[:12].tolist() == [7, 1, 7, 3, 5, 9, 3, 2, 3, 3, 8, 5]
    assert test[:3].sum(dtype=np.int64) == 14660
    np.testing.assert_array_equal(test, load_digits()[1][0])
