"""Whose work directory it is."""

import json

import pytest

from cka_sr_jax.training import ConfigError, default_config
from cka_sr_jax.training.workdir import check_workdir


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
    with pytest.raises(ConfigError, match=r"cannot be written, because .*file is a file"):
        check_workdir(config_with(), tmp_path / "file" / "run")
