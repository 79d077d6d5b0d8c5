"""Whose work directory it is."""

import json
import tempfile
from pathlib import Path

import pytest

from cka_sr_jax.training import ConfigError, default_config, load_variables
from cka_sr_jax.training.locks import claim
from cka_sr_jax.training.workdir import check_workdir, local_folder
from cka_sr_jax.workflows import run
from tests.speeds import fast_among

pytestmark = pytest.mark.usefixtures("blank_images")


def config_with(fields=()):
    config = default_config()
    config.model.options.hidden = (16, 16)
    config.update_from_flattened_dict(dict(fields))
    return config


def test_a_work_directory_of_another_config(tmp_path):
    config = config_with()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    check_workdir(config, tmp_path)
    # What does not change the computation may differ.
    check_workdir(config_with({"checkpoint.every": 5, "train.log_every": 7}), tmp_path)
    with pytest.raises(ConfigError, match=r"penalty.beta is 0.0001 there and 0.1 now"):
        check_workdir(config_with({"penalty.beta": 0.1}), tmp_path)
    with pytest.raises(ConfigError, match=r"model.options.hidden is"):
        check_workdir(config_with({"model.options.hidden": (16, 17)}), tmp_path)


def test_a_work_directory_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files but no run"):
        check_workdir(config_with(), tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_workdir(config_with(), tmp_path / "thesis.tex")


def test_a_work_directory_of_a_run_killed_as_it_wrote_its_config(tmp_path):
    (tmp_path / "config.tmp").write_text('{"se')
    check_workdir(config_with(), tmp_path)


def test_a_work_directory_below_a_file(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cannot be written \(.*file is a file\)"):
        check_workdir(config_with(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs://bucket/run", "is a gs address, and runs are kept in local folders"),
        ("s3://bucket/run", "is a s3 address"),
        ("runs/run[seed1]", r"has '\[' '\]' in it, with which checkpoints would not be found"),
        ("runs/*", r"has '\*' in it"),
        ("what?", r"has '\?' in it"),
        ("a\\b", "in it, with which checkpoints"),
        ("a\0b", "in it, with which checkpoints"),
        ("x" * 300, "cannot be used|has a name of 300 bytes"),
        ("é" * 140, "cannot be used|has a name of 280 bytes"),
        ("~nobody_of_this_name/run", "cannot be used"),
        ("", "is empty: name a folder, or leave it out"),
        ("  ", "is empty"),
        ("bad\udcff", "is not UTF-8"),
    ],
)
def test_a_path_that_cannot_work_is_refused_before_anything_is_written(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        local_folder(name)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        run(config_with(), name)


@pytest.mark.parametrize(
    "name",
    fast_among(
        ["run{1}", "run 1", "run=1,b=2/", "läuft", "$HOME", "a;b", "#1", "-x"], "run=1,b=2/"
    ),
)
def test_a_path_with_other_characters_works(name, tmp_path, capsys):
    workdir = f"{tmp_path}/{name}"
    config = config_with({"train.steps": 2, "train.batch_size": 16, "penalty.beta": 0.0})
    run(config, workdir)
    assert "head" in load_variables(workdir)["params"]
    run(config, workdir)
    assert f"{Path(workdir) / 'report' / 'index.html'}" in capsys.readouterr().out


def test_the_home_folder_has_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("~/runs/first") == tmp_path / "runs" / "first"


def test_a_link_works_and_a_dangling_one_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    check_workdir(config_with(), tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"is a link to .*gone, which is not there"):
        check_workdir(config_with(), tmp_path / "dangling")


def test_the_folders_of_another_run_are_refused(tmp_path):
    """A run that goes on removes checkpoints that it does not read."""
    (tmp_path / "config.json").write_text("{}")
    check_workdir(config_with(), tmp_path / "checkpoints" / "100")  # somebody else's project
    (tmp_path / "config.json").write_text(json.dumps(config_with().to_dict()))
    for folder in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "100"):
        with pytest.raises(ConfigError, match=r"is in .*checkpoints, which belongs to another"):
            check_workdir(config_with(), folder)
    check_workdir(config_with(), tmp_path / "seed=1")  # as a lottery's rounds


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("result.json", Path.mkdir, "result.json is a folder where a run keeps a file: move it"),
        ("config.json", Path.mkdir, "config.json is a folder"),
        ("report", Path.touch, "report is a file where a run keeps a folder"),
        ("checkpoints", Path.touch, "checkpoints is a file"),
    ],
)
def test_a_name_that_is_taken_is_refused(name, make, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_with().to_dict()))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        check_workdir(config_with(), tmp_path)


def test_a_directory_in_use_is_refused(tmp_path):
    with claim(tmp_path), pytest.raises(ConfigError, match="is in use by another process"):
        run(config_with(), tmp_path)


def test_a_config_that_cannot_work_leaves_no_directory(tmp_path):
    with pytest.raises(ConfigError, match="is more than the"):
        run(config_with({"train.batch_size": 4000}), tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config_with().to_dict()))

    def refuse(dir):
        if dir.name == "checkpoints":
            raise PermissionError(13, "Permission denied")
        return make(dir=dir)

    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written \(.*checkpoints: Permission denied"):
        check_workdir(config_with(), tmp_path)


def test_a_damaged_config_is_refused_where_nothing_proves_it(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"config.json is damaged: delete it if"):
        check_workdir(config_with(), tmp_path)
