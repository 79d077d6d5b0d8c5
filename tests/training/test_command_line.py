"""Every mistake on the command line is answered in one line, and nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from cka_sr_jax.training import command_line, default_config
from cka_sr_jax.training.fields import FIELDS

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "quickstart" / "digits.py"


def launch(arguments):
    return subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def slow(arguments, message):
    return pytest.param(arguments, message, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        slow(
            ["--config=configs/nothing.py"], "The config file configs/nothing.py cannot be read: No"
        ),
        (
            ["--config=configs/quickstart/digits_cka.py", "--grid_index=1", "--config.seed=3"],
            "--config.seed would do nothing: the grid sets seed; say --config.seeds with",
        ),
        slow(
            ["--config=configs"], "The config file configs is a folder: name a file in it that def"
        ),
        (["--config.seed=1", "--config.seed=2.5"], "--config.seed='2.5': expected a whole number"),
        slow(["--config.model.name=resnet20"], "made for resnet20."),
        (
            ["--config.model.name=resnet21"],
            "Unknown model 'resnet21', since depth=21 is not 6n + 2: use 20",
        ),
        slow(
            ["--config.train.steps=abc"],
            "--config.train.steps='abc': expected a whole number of st",
        ),
        (["--cofig=x"], "Unknown command line flag 'cofig'"),
        slow(["stray"], "Unexpected argument 'stray'"),
        (["--config.sparsty.density=0.1"], "Unknown config field 'sparsty.density': did you mean"),
        slow([f"--config={DIGITS}"] * 2, "--config names 2 files: give one"),
        (["--jobs=2"], "--retry, --jobs and --replicas are for grids: add --grid"),
        (["--config.penalty.samples=2"], "penalty.samples=2 gives 2 samples"),
        (
            ["--config=configs/methods/cifar10_resnet20_rigl.py", "--config.sparsity.rule=rst"]
            + [f"--config.sparsity.{name}=none" for name in ("update_every", "drop_fraction")],
            "data.dir is empty",  # which is looked at once the options suit the rule
        ),
    ],
)
def test_the_command_line_answers_in_one_line(arguments, message, tmp_path):
    workdir = tmp_path / "run"
    done = launch([f"--workdir={workdir}", *arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not workdir.exists()


def test_help_has_every_flag_and_field():
    done = launch(["--help"])
    assert "--replicas" in done.stdout
    for name in FIELDS:
        assert f"--config.{name}=" in done.stdout
    assert "--config.sparsity.update_every=none: Steps between" in done.stdout


CAUGHT = (flags.Error, AttributeError, KeyError, TypeError, ValueError)  # by launch.py


def parse(argument):
    values, argv = flags.FlagValues(), ["launch.py", argument]
    config_flags.DEFINE_config_dict("config", default_config(), flag_values=values, sys_argv=argv)
    values(argv)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.sparsty.density=0.1",
            "Unknown config field 'sparsty.density': did you mean '",
        ),
        (
            "--config.train.steps=abc",
            "--config.train.steps='abc': expected a whole number of steps, at least 0, such as 50",
        ),
        ("--config.data.flip=7", "--config.data.flip='7': expected True or False (whether to mir"),
        ("--config.grid.penalty.beta=(0.0,)", "grid.penalty.beta is not an axis of this config's"),
    ],
)
def test_a_field_that_the_flags_refuse(argument, message):
    with pytest.raises(CAUGHT) as error:
        parse(argument)
    problem = command_line.override_problem(error.value, [argument])
    assert problem.startswith(message)
    assert "\n" not in problem


def test_a_value_that_the_grid_would_replace():
    config = default_config()
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-3)})
    assert command_line.axis_problem(config, ["penalty.samples", "seed"]) is None
    problem = command_line.axis_problem(config, ["penalty.beta"])
    assert problem.startswith("--config.penalty.beta would do nothing: the grid sets penalty.beta")
    assert "--config.grid.penalty.beta" in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "has a syntax error at line 1: "),
        ("import a_module_that_is_missing\n", "imports what is not there: No module named 'a_modu"),
        ("config = 1\n", "has no function get_config: define one that returns the config."),
        ("raise SystemExit\n", "ends the program: define get_config, and nothing that exits."),
        ("def get_config():\n    pass\n", "has a get_config that returns NoneType: return"),
        ("def get_config():\n    return 1 / 0\n", "fails at line 2: ZeroDivisionError: division"),
        (
            (ROOT / "tests/configs/grid_without_group.py").read_text(),
            "fails at line 9: there is no field 'penalty' yet; a group of the grid is made first",
        ),
    ],
)
def test_a_config_file_that_gives_no_config(content, message, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(content)
    problem = command_line.config_of_file(str(path))
    assert problem.startswith(f"The config file {path} {message}")
    assert "\n" not in problem


def test_a_config_file_that_gives_one():
    assert command_line.config_of_file(str(DIGITS)).data.name == "digits"


def test_a_config_file_is_named_in_either_way():
    assert command_line.config_files(["launch.py", "--config=a.py", "--config.seed=1"]) == ["a.py"]
    assert command_line.config_files(["launch.py", "--config", "b.py", "--grid"]) == ["b.py"]


def test_only_a_field_that_may_be_none_is_unset():
    arguments = ["--config.sparsity.update_every=none", "--config.data.name=none", "--grid"]
    assert command_line.take_unset(arguments) == (arguments[1:], ["sparsity.update_every"])
    assert command_line.take_unset(["--config.data.dir=none"]) == ([], ["data.dir"])
    # The last one counts.
    again = [*arguments, "--config.sparsity.update_every=50"]
    assert command_line.take_unset(again) == (again[1:], [])


def test_a_device_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_device")
    done = launch([f"--workdir={tmp_path / 'run'}"])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX finds no device for JAX_PLATFORMS='no_such_device' (")
    assert not (tmp_path / "run").exists()


def test_a_flagfile_may_stand_beside_overrides(tmp_path):
    flagfile = tmp_path / "flags"
    flagfile.write_text("--config=configs/quickstart/digits.py\n--config.seed=7\n")
    done = launch([f"--flagfile={flagfile}", "--config.penalty.samples=2"])
    assert "penalty.samples=2 gives 2 samples" in done.stderr  # all else was taken
    done = launch([f"--flagfile={tmp_path / 'none'}"])
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_config_without_fields_is_one_sentence(tmp_path):
    path = tmp_path / "bare.py"
    path.write_text("from ml_collections import ConfigDict\n\nget_config = ConfigDict\n")
    for flags_of_grid in ([], ["--grid"]):
        done = launch([f"--config={path}", f"--workdir={tmp_path / 'run'}", *flags_of_grid])
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")


def test_options_of_the_model_that_the_config_does_not_set():
    config = default_config()
    config.model.options.width = 16
    options = ["width=8", "stem=imagenet", "remat=true", "hidden=(3, 4)", "depth=2"]
    argv = ["launch.py", *(f"--config.model.options.{option}" for option in options)]
    rest, new = command_line.take_new_options(argv, config)
    assert rest == argv[:2]  # the one that is set keeps its type
    names = {"stem": "imagenet", "remat": True, "hidden": (3, 4), "depth": 2}
    assert new == {f"model.options.{name}": value for name, value in names.items()}


def test_an_option_that_the_model_does_not_have_is_one_sentence(tmp_path):
    done = launch([f"--workdir={tmp_path / 'run'}", "--config.model.options.hiden=(3,)"])
    assert done.returncode == 2
    assert "Unknown option of mlp 'hiden': did you mean 'hidden'" in done.stderr
