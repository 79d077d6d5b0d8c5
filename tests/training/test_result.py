"""The end of a run: result and report."""

import shutil

import pytest

from cka_sr_jax.training import result as result_module
from cka_sr_jax.workflows import run
from tests.training.runs import small_config


def test_a_result_means_finished(finished, tmp_path, monkeypatch):
    """A run that is killed as it writes its report has no result yet; run again, it has both."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "result.json").unlink()

    def killed(workdir, **parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result_module, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small_config(), tmp_path)
    assert not (tmp_path / "result.json").exists()
    again = run(small_config(), tmp_path)
    assert again["test"] == finished[1]["test"]
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "result.json").exists()
