"""Every mistake in a config is one sentence, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cka_sr_jax.sweeps import grid_points
from cka_sr_jax.training import ConfigError, default_config, prepare, run
from cka_sr_jax.training.config import flatten, validate
from cka_sr_jax.training.optimizer import create_schedule

ROOT = Path(__file__).parents[2]


def config_with(**fields):
    config = default_config()
    config.model.options.hidden = (16, 16)
    for field, value in fields.items():
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict({field.replace("__", "."): value})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"penalty__bata": 1.0},
            "Unknown config field 'penalty.bata': did you mean 'penalty.beta'",
        ),
        ({"train__epochs": "ten"}, "train.epochs='ten' has the wrong type: it takes a float"),
        ({"data__flip": 1}, "data.flip=1 has the wrong type: it takes a bool"),
        ({"seed": True}, "seed=True has the wrong type"),
        ({"sparsity__density": 0.0}, r"sparsity.density=0.0 is not in \(0, 1\]"),
        ({"sparsity__density": 1.1}, r"sparsity.density=1.1 is not in \(0, 1\]"),
        ({"sparsity__rule": "rsst"}, "Unknown sparsity.rule 'rsst': did you mean 'rst'"),
        (
            {"sparsity__distribution": "erc"},
            "Unknown sparsity.distribution 'erc': did you mean 'er",
        ),
        (
            {"sparsity__update_every": 10},
            r"sparsity.update_every=\d+ is no option of sparsity.rule 'rst', which has den",
        ),
        (
            {"sparsity__rule": "snip", "sparsity__rounds": 10},
            r"sparsity.rounds=\d+ is no option of sparsity.rule 'snip'",
        ),
        ({"sparsity__rule": "rigl", "sparsity__update_every": 0}, "update_every=0 is not a number"),
        (
            {"sparsity__rule": "gmp", "sparsity__start": 0.9},
            r"does not come after start_step=90.*\(end_step is sparsity.end=0.75 of the run's",
        ),
        (
            {"sparsity__rule": "gmp", "sparsity__initial_density": 0.5},
            "sparsity.initial_density=0.5 is no option of sparsity.rule 'gmp', which has density",
        ),
        ({"sparsity__rule": "channels"}, r"keep it dense with sparsity.exclude=\('head/kernel',\)"),
        (
            {"sparsity__rule": "set", "sparsity__drop_fraction": 1.0},
            r"drop_fraction=1.0 is not in \(0, 1\)",
        ),
        ({"sparsity__rule": "set", "sparsity__grow": 3}, "sparsity.grow=3 has the wrong type"),
        (
            {"sparsity__rule": "rigl", "sparsity__exact": False},
            "sparsity.exact=False is no option of sparsity.rule 'rigl'",
        ),
        (
            {"sparsity__rule": "sr_ste", "sparsity__rescale": True},
            "sparsity.rescale=True is for masks that are there from the start",
        ),
        (
            {"sparsity__rule": "str", "eval__select": "best-validation"},
            "would choose by accuracy among densities",
        ),
        (
            {"penalty__similarity": "cca", "penalty__batches": 2},
            "penalty.similarity='cca' averages nothing over devices or sub-batches",
        ),
        ({"penalty__similarity": "cca", "penalty__samples": 3}, "debiased CCA needs at least 4"),
        ({"penalty__debiased": False, "penalty__samples": 1}, "biased CKA needs at least 2"),
        ({"penalty__similarity": "cda"}, "Unknown penalty.similarity 'cda'"),
        (
            {"penalty__similarity": "cca", "penalty__kernel": "rbf"},
            "'cca' has no penalty.kernel='rbf'",
        ),
        ({"sparsity__end": 0.0}, r"sparsity.end=0.0 is not in \(0, 1\]"),
        ({"penalty__end": 1.5}, r"penalty.end=1.5 is not in \[0, 1\]"),
        ({"sparsity__exclude": ("haed",)}, "exclude pattern 'haed' matches no parameter"),
        ({"model__name": "resnet"}, "Unknown model 'resnet'"),
        ({"model__options__width": 3}, "Unknown option of mlp 'width'"),
        ({"data__name": "mnist"}, "data.dir is empty"),
        ({"data__name": "mnist", "data__dir": "/nowhere"}, "data.dir is '/nowhere'"),
        ({"data__validation": 1.0}, "data.validation is 1.0"),
        ({"data__mean": (0.1, 0.2), "data__std": (1.0, 1.0)}, "There are 2 means"),
        ({"data__pad_mode": "wrap"}, "Unknown data.pad_mode 'wrap'"),
        ({"penalty__samples": 3}, "penalty.samples=3 gives 3 samples"),
        ({"penalty__samples": 0}, "penalty.samples=0 gives 0 samples"),
        ({"penalty__samples": 64}, "needs 64 samples and each device's batch has 32"),
        ({"penalty__samples": 16, "penalty__batches": 3}, "needs 48 samples"),
        ({"penalty__beta": -1.0}, "penalty.beta=-1.0 is too small"),
        ({"model__options__hidden": (16,)}, "no pair of features to penalize"),
        ({"sparsity__rule": "static"}, "Unknown sparsity.rule 'static'"),
        ({"sparsity__exclude": (3,)}, "sparsity.exclude=.* takes a tuple of strings"),
        ({"optimizer__decay_at": ("a",)}, "optimizer.decay_at=.* takes a tuple of numbers"),
        ({"train__epochs": float("inf")}, "train.epochs=inf is not a finite number"),
        ({"model__options__hidden": ("a", "b")}, "model.options=.* do not make a mlp"),
        ({"model__options__hidden": (0, 16)}, "model.options=.* do not make a mlp"),
        ({"model__options__dtype": "float32"}, "model.options.dtype cannot be set"),
        ({"model__options__hidden": ()}, "no pair of features to penalize"),
        ({"train__batch_size": 130}, "does not divide over 4 devices"),
        ({"train__batch_size": 4000}, "more than the 1293 training images"),
        ({"train__epochs": 0.0}, "train for no step"),
        ({"train__label_smoothing": 1.0}, "train.label_smoothing=1.0 is not in"),
        ({"optimizer__schedule": "linear"}, "Unknown optimizer.schedule 'linear'"),
        (
            {"optimizer__learning_rate": float("nan")},
            "optimizer.learning_rate=nan is not a finite number",
        ),
        (
            {"eval__select": "best-validation", "data__validation": 0.0},
            "needs validation data and data.validation is 0",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(fields, message, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match=message) as error:
        run(config_with(**fields), workdir)
    assert "\n" not in str(error.value)
    assert not workdir.exists()


def test_a_work_directory_of_another_config(tmp_path):
    config = config_with()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    prepare(config, tmp_path)
    # What does not change the computation may differ.
    prepare(config_with(checkpoint__every=5, train__log_every=7), tmp_path)
    with pytest.raises(ConfigError, match=r"penalty.beta is 0.0001 there and 0.1 now"):
        prepare(config_with(penalty__beta=0.1), tmp_path)
    with pytest.raises(ConfigError, match=r"model.options.hidden is"):
        prepare(config_with(model__options__hidden=(16, 17)), tmp_path)


def test_a_work_directory_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files and no run"):
        prepare(config_with(), tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        prepare(config_with(), tmp_path / "thesis.tex")


def test_a_work_directory_of_a_run_killed_as_it_wrote_its_config(tmp_path):
    (tmp_path / "config.tmp").write_text('{"se')
    prepare(config_with(), tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_is_valid_and_says_what_to_expect(path):
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    config = scope["get_config"]()
    validate(config, devices=4)
    assert f"--config={path.relative_to(ROOT)}" in scope["__doc__"]
    if config.grid:
        assert "--grid" in scope["__doc__"]
        assert grid_points(config)
    assert json.loads(json.dumps(config.to_dict()))


def test_flatten_reads_tuples_as_json_does():
    config = config_with()
    assert flatten(json.loads(json.dumps(config.to_dict()))) == flatten(config)


def test_schedules():
    config = default_config().optimizer
    config.learning_rate = 1.0
    step = create_schedule(config, steps=100)
    rates = [float(step(s)) for s in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    config.schedule = "cosine"
    config.warmup = 20 / 120
    cosine = create_schedule(config, steps=120)
    assert float(cosine(0)) == pytest.approx(1 / 20)
    assert float(cosine(9)) == pytest.approx(0.5)
    assert float(cosine(20)) == pytest.approx(1)
    assert float(cosine(70)) == pytest.approx(0.5)
    assert float(cosine(120)) == pytest.approx(0, abs=1e-6)
    config.schedule = "constant"
    assert float(create_schedule(config, 100)(99)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.sparsty.density=0.1"], "Unknown config field 'sparsty.density': did you mean"),
        (["--config.train.steps=abc"], "--config.train.steps=abc"),
        (["--config=configs/nothing.py"], "The config file cannot be read"),
        (["--config.model.options.hiden=(3,)"], "sets no field 'hiden'"),
        (
            ["--config.grid.penalty.beta=(0.0,)"],
            "grid.penalty.beta is no axis of this config's grid",
        ),
        (
            ["--config=tests/configs/grid_without_group.py"],
            "has to be made first, as in config.grid",
        ),
        (
            ["--config=configs/quickstart/digits_cka.py", "--grid", "--config.penalty.beta=5e-3"],
            "--config.penalty.beta would do nothing: the grid sets penalty.beta; say --config.grid",
        ),
        (
            ["--config=configs/quickstart/digits_cka.py", "--grid_index=1", "--config.seed=3"],
            "--config.seed would do nothing: the grid sets seed; say --config.seeds with",
        ),
        (["--cofig=x"], "Unknown command line flag 'cofig'"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--config.penalty.samples=2"], "penalty.samples=2 gives 2 samples"),
    ],
)
def test_the_command_line_answers_in_one_line(arguments, message, tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "launch.py", f"--workdir={workdir}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not workdir.exists()
