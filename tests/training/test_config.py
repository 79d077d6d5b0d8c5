"""Every mistake in a config is one sentence, and nothing is written."""

import json
import sys

import pytest

from cka_sr_jax.training import ConfigError
from cka_sr_jax.training.config import flatten, validate
from tests.report.fake_wandb import install
from tests.training.runs import config_with


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"penalty__bata": 1.0},
            "Unknown config field 'penalty.bata': did you mean 'penalty.bet",
        ),
        ({"penalty": 3}, "Unknown config field 'penalty'"),
        (
            {"train__epochs": "ten"},
            r"train.epochs='ten': expected a number of epochs above 0, such as 10.0 \(length of",
        ),
        ({"data__flip": 1}, r"data.flip=1: expected True or False \(whether to mirror"),
        ({"seed": True}, "seed=True: expected a whole number"),
        ({"seed": 2**32}, r"seed=4294967296: expected a whole number in \[0, 4294967295\]"),
        ({"seeds": (0, -1)}, r"seeds=\(0, -1\): expected whole numbers in"),
        (
            {"optimizer__decay_at": (10, 15)},
            r"optimizer.decay_at=\(10, 15\): expected shares of the run in \(0, 1\), increasing, "
            r"such as \(0.5, 0.75\)\.$",
        ),
        ({"optimizer__decay_at": (0.5, 0.5)}, r"decay_at=\(0.5, 0.5\): expected .* increasing"),
        ({"optimizer__decay_at": ("a",)}, r"decay_at=\('a',\): expected shares of the run"),
        ({"optimizer__warmup": 1.0}, r"warmup=1.0: expected a share of the run in \[0, 1\)"),
        ({"optimizer__schedule": "linear"}, "Unknown optimizer.schedule 'linear'"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate=nan: expected a finite number"),
        ({"data__mean": (0.5,)}, r"data.mean=\(0.5,\) and data.std=\(\): expected one of each"),
        ({"data__mean": (0.5,), "data__std": (0.0,)}, r"data.std=\(0.0,\): expected numbers in"),
        ({"data__stream": True}, r"data.stream=True and data.crop=0: expected True with a crop"),
        ({"data__crop": 224}, "data.stream=False and data.crop=224: .* or False with 0"),
        ({"data__stream": True, "data__crop": 8}, "data.stream=True needs data.mean and data.std"),
        (
            {
                "data__stream": True,
                "data__crop": 8,
                "data__mean": (0.5,),
                "data__std": (0.2,),
                "layer_sparsity__strengths": (0.1,),
            },
            "layer sparsity trains on all images at once and data.stream=True leaves",
        ),
        ({"data__pad_mode": "wrap"}, "Unknown data.pad_mode 'wrap'"),
        ({"sparsity__density": 1.1}, r"sparsity.density=1.1: expected a share of the weights in"),
        ({"sparsity__rule": "rsst"}, "Unknown sparsity.rule 'rsst': did you mean 'rst'"),
        ({"sparsity__rule": "static"}, "Unknown sparsity.rule 'static'"),
        (
            {"sparsity__distribution": "erc"},
            "Unknown sparsity.distribution 'erc': did you",
        ),
        ({"sparsity__exclude": (3,)}, r"sparsity.exclude=\(3,\): expected strings"),
        ({"sparsity__grow": 3}, "sparsity.grow=3: expected one of magnitude, gradient"),
        (
            {"sparsity__update_every": 10},
            "update_every=10 is an option that .* 'rst' lacks",
        ),
        ({"sparsity__rule": "snip", "sparsity__rounds": 10}, "sparsity.rounds=10 is .* 'snip'"),
        (
            {"sparsity__rule": "rigl", "sparsity__update_every": 0},
            "update_every=0: expected a",
        ),
        (
            {"sparsity__rule": "gmp", "sparsity__start": 0.9},
            r"sparsity.start=0.9: expected a share of the run no later than sparsity.end=0.75",
        ),
        (
            {"sparsity__rule": "granet", "sparsity__start": 0.5, "sparsity__prune_end": 0.3},
            "sparsity.start=0.5: expected a share of the run no later than sparsity.prune_end=0.3",
        ),
        (
            {"sparsity__rule": "granet", "sparsity__prune_end": 0.8},
            "sparsity.prune_end=0.8: expected a share of the run no later than sparsity.end=0.75",
        ),
        (
            {"sparsity__rule": "granet", "sparsity__initial_density": 0.01},
            "sparsity.initial_density=0.01: expected at least sparsity.density=0.05",
        ),
        (
            {
                "sparsity__rule": "set",
                "sparsity__drop_fraction": 0.1,
                "sparsity__final_drop_fraction": 0.3,
            },
            "sparsity.final_drop_fraction=0.3: expected at most sparsity.drop_fraction=0.1",
        ),
        (
            {"sparsity__rule": "sr_ste", "sparsity__n": 4, "sparsity__m": 4},
            "sparsity.n=4: expected less than sparsity.m=4",
        ),
        ({"sparsity__rule": "ntt"}, "sparsity.rounds=None: ntt trains on this many batches"),
        ({"sparsity__rule": "dst"}, "sparsity.rule 'dst' needs the option sparsity.alpha"),
        ({"sparsity__rule": "channels"}, r"keep it dense with sparsity.exclude=\('head/kernel',\)"),
        (
            {"sparsity__rule": "sr_ste", "sparsity__rescale": True},
            "sparsity.rescale=True .* 'sr_ste'",
        ),
        (
            {"sparsity__rule": "gmp", "sparsity__new_weights": "adam", "optimizer__name": "adamw"},
            "sparsity.new_weights='adam' is for rules that grow weights, and 'gmp' is none",
        ),
        (
            {"sparsity__rule": "set", "sparsity__new_weights": "adam", "optimizer__name": "sgd"},
            "sparsity.new_weights='adam' corrects Adam's bias and optimizer.name is 'sgd'",
        ),
        (
            {"sparsity__rule": "str", "eval__select": "best-validation"},
            "eval.select='best-validation' would compare accuracies at different densities",
        ),
        (
            {"eval__select": "best-validation", "data__validation": 0.0},
            "needs validation images and data.validation is 0",
        ),
        (
            {"penalty__similarity": "cca", "penalty__batches": 2},
            "penalty.sync=False and penalty.batches=2 average HSIC",
        ),
        (
            {"penalty__similarity": "cca", "penalty__kernel": "rbf"},
            "penalty.kernel='rbf' is for CKA",
        ),
        ({"penalty__similarity": "cda"}, "Unknown penalty.similarity 'cda'"),
        ({"penalty__similarity": "cca", "penalty__samples": 3}, "debiased CCA needs at least 4"),
        ({"penalty__debiased": False, "penalty__samples": 1}, "biased CKA needs at least 2"),
        ({"penalty__samples": 3}, "penalty.samples=3 gives 3 samples"),
        ({"penalty__samples": 0}, "penalty.samples=0 gives 0 samples"),
        ({"penalty__samples": 64}, "needs 64 samples and each device's batch has 32"),
        ({"penalty__samples": 16, "penalty__batches": 3}, "needs 48 samples"),
        ({"train__batch_size": 130}, "does not divide over 4 devices: use 128"),
        ({"train__accumulate": 0}, "train.accumulate=0: expected a whole number, at least 1"),
        (
            {"train__batch_size": 36, "train__accumulate": 2},
            "=36 does not divide over 4 devices with train.accumulate=2 parts each: use 32",
        ),
        (
            {"train__accumulate": 8},
            "needs 8 samples and each of train.accumulate=8 parts of each device's batch has 4: "
            "lower penalty.samples or raise train.batch_size, or lower train.accumulate",
        ),
        (
            {"train__accumulate": 16, "penalty__samples": -1},
            "penalty.samples=-1 gives 2 samples and debiased CKA needs at least 4",
        ),
        ({"lottery__prune": 1.0}, r"lottery.prune=1.0: expected a share of the remaining weights"),
        (
            {"layer_sparsity__strengths": (0.1, 0.1)},
            r"layer_sparsity.strengths=\(0.1, 0.1\): expected numbers above 0, increasing",
        ),
    ],
)
def test_what_needs_no_data_is_one_sentence(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        validate(config_with(**fields), devices=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity__rule": "gmp", "sparsity__start": 0.5, "sparsity__end": 0.5},  # one-shot
        {"sparsity__rule": "granet", "sparsity__start": 0.1, "sparsity__prune_end": 0.75},
        {"penalty__samples": -1},
        {"train__accumulate": 4},
        {"train__accumulate": 32, "penalty__beta": 0.0},
        {"penalty__beta": 0.0, "penalty__samples": 64, "penalty__similarity": "cca"},
        {"optimizer__decay_at": ()},
        {"train__epochs": 3},
    ],
)
def test_what_can_work_is_accepted(fields):
    validate(config_with(**fields), devices=4)


def test_a_field_that_a_config_lacks_is_named():
    config = config_with()
    with config.unlocked():
        del config.train.steps
    with pytest.raises(ConfigError, match=r"The config has no field train\.steps: start from def"):
        validate(config, devices=1)


def test_flatten_reads_tuples_as_json_does():
    config = config_with()
    assert flatten(json.loads(json.dumps(config.to_dict()))) == flatten(config)


def test_wandb_has_to_be_installed_and_to_have_metrics_to_show(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()  # what W&B leaves in a folder is no package
    with pytest.raises(ConfigError) as error:
        validate(config_with(report__wandb="sparse"), devices=1)
    assert str(error.value) == (
        "report.wandb='sparse' needs the package wandb, which is not installed: "
        "pip install 'cka_sr_jax[wandb]', or leave report.wandb empty."
    )
    install(monkeypatch)
    validate(config_with(report__wandb="sparse"), devices=1)
    with pytest.raises(ConfigError, match=r"experiment without: leave report.wandb empty"):
        validate(config_with(report__wandb="sparse", layer_sparsity__strengths=(0.1,)), devices=1)
