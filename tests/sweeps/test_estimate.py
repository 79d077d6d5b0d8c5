"""How long the rest of a grid takes."""

import itertools
from types import SimpleNamespace

import pytest

from cka_sr_jax.sweeps import estimate
from cka_sr_jax.sweeps.estimate import TimeLeft, duration


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Those of five points that have to run; a minute passes at each look at the clock."""
    now = itertools.count(0, 60)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: next(now)))
    folders = [tmp_path / name for name in "abcde"]
    for folder in folders:
        folder.mkdir()
    return folders


def finish(folder):
    (folder / "result.json").write_text("{}")


def test_is_the_time_of_a_finished_point_for_each_that_is_left(folders):
    time_left = TimeLeft(folders, jobs=1)
    assert time_left.seconds([]) is None
    finish(folders[0])
    assert time_left.seconds("a") == 60 * 4
    finish(folders[1])  # after two minutes
    assert time_left.seconds("ab") == 60 * 3


def test_counts_failures_as_ended_and_what_other_processes_finish(folders):
    time_left = TimeLeft(folders, jobs=1)
    finish(folders[0])
    finish(folders[4])
    assert time_left.seconds("ab") == 30 * 2  # b failed, and another process finished e
    finish(folders[2])
    finish(folders[3])
    assert time_left.seconds("abcd") is None


def test_waits_until_each_job_has_finished_one(folders):
    time_left = TimeLeft(folders, jobs=2)
    finish(folders[0])
    assert time_left.seconds("a") is None
    finish(folders[1])
    assert time_left.seconds("ab") == 30 * 3


def test_durations():
    assert [duration(s) for s in (7.2, 200, 9000)] == ["7 s", "3 min", "2.5 h"]
