"""A work directory has one process, which loses it when it ends."""

import errno
import multiprocessing

import pytest

from cka_sr_jax.training import ConfigError
from cka_sr_jax.training.locks import claim


def hold_until_killed(path, ready):
    with claim(path) as held:
        assert held
        ready.set()
        multiprocessing.Event().wait()


def test_one_process_holds_it_until_it_ends_however_it_ends(tmp_path):
    path = tmp_path / "grid" / "point"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold_until_killed, args=(path, ready))
    other.start()
    assert ready.wait(120)
    with claim(path) as held:
        assert not held
    other.kill()
    other.join(60)
    with claim(path) as held:
        assert held
        with claim(path) as again:
            assert not again
    with claim(path) as held:
        assert held


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, code):
    def refuse(file, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    message = r"cannot lock .*\.lock \(no locks here\): choose a --workdir"
    with pytest.raises(ConfigError, match=message), claim(tmp_path / "point"):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot lock .*: choose a --workdir that is writable"):  # noqa: SIM117
        with claim(tmp_path / "file" / "point"):
            pass


def test_a_claim_leaves_no_directory_behind(tmp_path):
    with claim(tmp_path / "seed=1") as claimed:
        assert claimed
        with claim(tmp_path / "seed=1") as again, claim(tmp_path / "seed=2") as other:
            assert not again
            assert other
    assert not (tmp_path / "seed=1").exists()
