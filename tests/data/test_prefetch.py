"""Items ahead of time: the same ones in the same order, whoever makes them; and how it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cka_sr_jax.data import Prefetched, TrainingBatches, stream_tfds
from tests.speeds import fast_among
from tests.tfds_sets import write_photographs


class Squares:
    """Item i is {"square": [i^2] * many}; item `bad` is an error."""

    def __init__(self, count, bad=None, seconds=0.0):
        self.count, self.bad, self.seconds = count, bad, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        time.sleep(self.seconds)
        if i == self.bad:
            raise ValueError(f"Item {i} is damaged.")
        return {"square": np.full(2000, i * i), "pid": np.array([os.getpid()])}

    def __repr__(self):
        return f"Squares({self.count})"


def children():
    return multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_source_whoever_makes_them(workers, tmp_path):
    write_photographs(tmp_path / "tiny/1.0.0", train=20, test=1)
    images = stream_tfds("tiny", tmp_path, 12).train.images
    source = TrainingBatches(images, 3, 6, range(1, 6), np.arange(6))
    with Prefetched(source, workers) as batches:
        found = list(batches)
    assert len(found) == len(source) == 5
    for i, batch in enumerate(found):
        for name, array in source[i].items():
            np.testing.assert_array_equal(batch[name], array)
            assert type(batch[name]) is np.ndarray
    assert not children()


@pytest.mark.parametrize(
    ("workers", "count"), fast_among([(0, 0), (0, 1), (2, 1), (3, 7)], (0, 0), (0, 1))
)
def test_any_number_of_items(workers, count):
    with Prefetched(Squares(count), workers) as items:
        found = list(items)
        assert next(items, None) is None
    assert [int(item["square"][0]) for item in found] == [i * i for i in range(count)]
    assert {int(item["pid"][0]) == os.getpid() for item in found} <= {workers == 0}


@pytest.mark.parametrize("workers", fast_among([0, 2], 0))
def test_what_the_source_raises_is_raised(workers):
    with Prefetched(Squares(5, bad=1), workers) as items:
        next(items)
        with pytest.raises(ValueError, match="Item 1 is damaged"):
            next(items)
    assert not children()


def test_ready_says_whether_the_next_item_is_there():
    with Prefetched(Squares(3, seconds=0.3), 0) as items:
        assert not items.ready
        next(items)
        deadline = time.monotonic() + 60
        while not items.ready and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
        next(items)
        assert time.monotonic() - began < 0.2


def test_leaving_early_ends_the_threads():
    before = set(threading.enumerate())
    with Prefetched(Squares(1000), 0) as items:
        next(items)
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.mark.slow
def test_workers_outlive_stop_signals_but_not_their_parent():
    with Prefetched(Squares(1000), 2) as items:
        found = [next(items) for _ in range(4)]
        workers = {int(item["pid"][0]) for item in found}
        assert len(workers) == 2
        for pid in workers:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        later = [int(next(items)["square"][0]) for _ in range(20)]
    assert later == [i * i for i in range(4, 24)]
    assert not children()


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence():
    with Prefetched(Squares(1000), 2) as items:
        os.kill(int(next(items)["pid"][0]), signal.SIGKILL)
        with pytest.raises(ValueError, match=r"A process that prepares data has died \(.*code -9"):
            list(items)


PARENT = """
import sys, time
from cka_sr_jax.data import Prefetched
from tests.data.test_prefetch import Squares
if __name__ == "__main__":
    items = Prefetched(Squares(10 ** 6), 2)
    print(*{int(next(items)["pid"][0]) for _ in range(4)}, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "parent.py").write_text(PARENT)
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
