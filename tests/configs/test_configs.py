"""Every config can work, and its docstring's commands too."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from cka_sr_jax.models import create_model
from cka_sr_jax.sweeps import grid_points
from cka_sr_jax.training import default_config, validate
from cka_sr_jax.training.command_line import take_unset
from cka_sr_jax.training.config import flatten
from cka_sr_jax.training.fields import FREE_GROUPS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.stem != "__init__")


def load(path):
    """The file's docstring and its config."""
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    return scope["__doc__"], scope["get_config"]()


def commands(text):
    """The docstring's commands, each as a list; "..." stands for the first one."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    found = [line for line in lines if line.startswith(("python ", "... "))]
    return [shlex.split(line.replace("...", found[0], 1), comments=True) for line in found]


def parse(command, path, config):
    """The config of a command of launch.py."""
    assert f"--config={path.relative_to(ROOT)}" in command
    words = [word for word in command if re.match(r"--(?!config=)", word)]
    arguments, unset = take_unset(words)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("grid", False, "", flag_values=values)
    flags.DEFINE_integer("replicas", 1, "", flag_values=values)
    argv = ["launch.py", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
    values.config.update_from_flattened_dict(dict.fromkeys(unset))
    return values.config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_command_figure_and_cost(path):
    text, config = load(path)
    validate(config, devices=4)
    assert json.loads(json.dumps(config.to_dict()))
    assert f"python launch.py --config={path.relative_to(ROOT)}" in text
    for page in re.findall(r"docs/[\w/]+\.md", text):
        assert (ROOT / page).exists(), page
    for heading in ("Expected: ", "Cost: "):
        assert f"\n{heading}" in text
    if config.grid:
        assert grid_points(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_commands_of_a_docstring_work(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text, _ = load(path)
    for command in commands(text):
        if command[1] == "-m":
            assert importlib.util.find_spec(command[2])
            continue
        config = parse(command, path, load(path)[1])
        assert bool(config.grid or config.seeds) == ("--grid" in command)
        if "--grid" in command:
            assert grid_points(config)
        else:
            validate(config, devices=1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_fields_that_a_docstring_names_exist(path):
    text, _ = load(path)
    known = flatten(default_config())
    for name in re.findall(r"--config\.([\w.]*\w)", text):
        name = name.removeprefix("grid.")
        assert name in known or name.startswith(FREE_GROUPS[1]), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_of_a_config_has_its_options(path):
    _, config = load(path)
    assert create_model(config.model.name, 10, **config.model.options).num_classes == 10
