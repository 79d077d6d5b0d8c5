"""The experiment end to end: fit, merge, refit, compare; what it leaves and what it refuses."""

import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax.layer_sparsity import (
    load_mlp,
)
from cka_sr_jax.models import MLP
from cka_sr_jax.training import ConfigError
from cka_sr_jax.workflows import layer_sparsity
from tests.workflows.layer_sparsity.small import small_config


def outputs_of(file, inputs):
    """By a plain MLP, from the file alone."""
    hidden, params = load_mlp(file)
    model = MLP(len(params["head"]["bias"]), hidden)
    return model.apply({"params": params}, inputs, train=False)


def test_digits_end_to_end(tmp_path, capsys):
    config = small_config()
    workdir = tmp_path / "run"
    result = workflows.run(config, workdir, Console(width=80))
    printed = capsys.readouterr().out
    assert {p.name for p in workdir.iterdir()} == {
        "config.json", "result.json", "tables.md",
        "fitted.npz", "merged.npz", "refitted.npz",
    }  # fmt: skip
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [row["strength"] for row in result["path"]] == [0, 100]
    assert result["path"][0]["depth"] == 4
    assert result["path"][-1]["depth"] == 2  # the input is signed, so its layer stays active
    assert result["path"][-1]["active"] == [0]
    rows = {row["name"]: row for row in result["networks"]}
    assert len(rows) == 5
    merged = rows["merged"]
    sizes = [64, *merged["hidden"], 10]
    assert merged["depth"] == len(sizes) - 1 == 1 + merged["active"]
    macs = sum(m * n for m, n in itertools.pairwise(sizes))
    assert merged["multiply_adds"] == macs
    assert merged["parameters"] == macs + sum(sizes[1:])
    assert merged["test_error"] == pytest.approx(
        rows["fitted"]["test_error"], abs=0.004
    )  # one image
    tables = (workdir / "tables.md").read_text()
    for name in rows:
        star = " *" if name == f"refit, {result['chosen_start']}" else ""
        assert f"| {name}{star} |" in tables
        assert name in printed
    # Merged and fitted networks are the same function, as plain MLPs read from the files.
    inputs = layer_sparsity.prepare(config).task.test.inputs
    merged_outputs = outputs_of(workdir / "merged.npz", inputs)
    np.testing.assert_allclose(
        merged_outputs, outputs_of(workdir / "fitted.npz", inputs), rtol=1e-4, atol=1e-4
    )
    # The same command again says that it is complete, and changes nothing.
    before = (workdir / "result.json").stat().st_mtime_ns
    again = workflows.run(config, workdir, Console(width=80))
    assert again == json.loads(json.dumps(result))
    assert "This experiment is complete" in capsys.readouterr().out
    assert (workdir / "result.json").stat().st_mtime_ns == before


def test_layers_removed_by_a_score_end_to_end(tmp_path, capsys):
    config = small_config(layer_sparsity__strengths=(), layer_sparsity__score="entropy")
    config.layer_sparsity.standard_errors = 1000.0  # any error will do, so the shallowest
    result = workflows.run(config, tmp_path, Console(width=80))
    assert [row["depth"] for row in result["path"]] == [4, 3, 2]
    assert [row["chosen"] for row in result["path"]] == [False, False, True]
    assert len(result["path"][2]["active"]) == 1
    tables = (tmp_path / "tables.md").read_text()
    assert "| removed | depth |" in tables
    assert "| 2 * | 2 |" in tables
    assert "By score 'entropy': error rate" in tables
    merged = load_mlp(tmp_path / "merged.npz")
    assert len(merged[0]) == 1
    workflows.run(config, tmp_path, Console(width=80))
    assert "This experiment is complete" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_result_is_made_again(content, tmp_path, capsys):
    config = small_config()
    workflows.run(config, tmp_path, Console(quiet=True))
    result = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(content)
    workflows.run(config, tmp_path, Console(width=80))
    assert "is damaged, so it is made again" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["path"] == json.loads(result)["path"]


def test_where_nothing_merges_nothing_is_called_refitted(tmp_path):
    config = small_config(layer_sparsity__strengths=(1e-6,), train__steps=10)
    config.layer_sparsity.standard_errors = 100.0
    console = Console(record=True, quiet=True, width=80)
    result = workflows.run(config, tmp_path / "run", console)
    assert not result["chosen_merged"]
    assert {row["warm_validation_error"] for row in result["path"]} == {None}
    assert [network["name"] for network in result["networks"]] == ["no penalty", "fitted"]
    tables = (tmp_path / "run" / "tables.md").read_text()
    assert "| - | - |" in tables
    assert ", no layer merged: error rate" in tables
    assert result["chosen_start"] == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_sparsity__strengths": (2.0, 1.0)}, "expected numbers above 0, increasing"),
        ({"layer_sparsity__strengths": (0.0, 1.0)}, "expected numbers above 0, increasing"),
        ({"layer_sparsity__score": "entropi"}, "Unknown layer_sparsity.score 'entropi'"),
        ({"layer_sparsity__score": "cka"}, "removes layers without the penalty"),
        ({"layer_sparsity__refit_l1": -1.0}, "layer_sparsity.refit_l1=-1.0: expected a number, at"),
        ({"layer_sparsity__teacher__active": 0}, "teacher.active=0: expected a whole"),
        ({"model__name": "lenet5"}, "merges the layers of an MLP and model.name is 'lenet5'"),
        ({"data__validation": 0.0}, "chooses its strength on validation data"),
        ({"data__flip": True}, "trains on images as they are"),
        ({"sparsity__rule": "snip"}, "sparsity.rule='snip': use one of channels, dense, gmp, gra"),
        ({"sparsity__rule": "dst", "sparsity__alpha": 1.0}, "does not train with sparsity.rule"),
        ({"sparsity__rescale": True}, "set sparsity.rescale to False"),
        ({"eval__select": "best-validation"}, "eval.select is 'best-validation': set it to 'last'"),
        ({"lottery__rounds": 2}, "lottery.rounds=2 are two experiments"),
        ({"model__options__hidden": ()}, r"hidden=\(\) has no layer that can merge"),
        ({"model__options__hidden": (12,)}, r"hidden=\(12,\) has no layer that can merge"),
        (
            {"model__options__hidden": (12,), "layer_sparsity__strengths": (),
             "layer_sparsity__score": "cka"},
            r"hidden=\(12,\) has no layer to remove by a score",
        ),
        ({"data__name": "mnist"}, "data.dir is empty"),
        ({"sparsity__rule": "rsst"}, "Unknown sparsity.rule 'rsst'"),
        ({"train__batch_size": 4000}, "more than the 1293 training examples"),
        ({"optimizer__learning_rate": 1e30}, "diverges without any layer penalty"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        workflows.run(small_config(**fields), tmp_path / "run", Console(quiet=True))
    assert "\n" not in str(error.value)
    if "learning_rate" not in str(fields):
        assert not (tmp_path / "run").exists()


def test_layer_sparsity_takes_one_device_whatever_there_are(tmp_path):
    config = small_config(train__batch_size=50, train__steps=1)  # four fake devices
    assert workflows.run(config, tmp_path / "run", Console(quiet=True))["steps"] == 1
