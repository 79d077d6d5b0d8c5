"""The experiment end to end: fit, merge, refit, compare; what it leaves and what it refuses."""

import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax.layer_sparsity import (
    Affine,
    active_layers,
    load_mlp,
    merge_layers,
)
from cka_sr_jax.models import MLP
from cka_sr_jax.training import ConfigError, default_config
from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity import path as path_module
from cka_sr_jax.workflows.layer_sparsity import tasks
from cka_sr_jax.workflows.layer_sparsity.fit import Estimate, Strengths, fit, make_trainer
from cka_sr_jax.workflows.layer_sparsity.path import Point, choose
from cka_sr_jax.workflows.layer_sparsity.tables import (
    Network,
    networks_table,
    path_table,
    print_table,
)


def small_config(**fields):
    config = default_config()
    config.model.options.hidden = (12,) * 3
    config.train.steps = 40
    config.train.batch_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.sparsity.rule = "dense"
    config.penalty.beta = 0.0
    config.layer_sparsity.strengths = (100.0,)
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.fixture(autouse=True)
def _quick_timing(monkeypatch):
    monkeypatch.setattr("cka_sr_jax.workflows.layer_sparsity.tables.TIMINGS", 2)


def random_chain(widths, seed=0, nonnegative=()):
    rng = np.random.default_rng(seed)
    layers = []
    for i, (m, n) in enumerate(itertools.pairwise(widths)):
        arrays = [rng.normal(size=(m, n)), rng.normal(size=n)]
        if i in nonnegative:
            arrays = [np.abs(array) for array in arrays]
        layers.append(Affine(*(array.astype(np.float32) for array in arrays)))
    return tuple(layers)


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


def test_the_choice_does_without_test_data(tmp_path, monkeypatch):
    def untrained(plan, hidden, *, start=None, strengths=Strengths(), method=None):  # noqa: B008
        nonnegative = (1, 2) if strengths.layer else ()
        return start or random_chain((10, *hidden, 1), nonnegative=nonnegative)

    monkeypatch.setattr(path_module, "fit", untrained)
    plan = layer_sparsity.prepare(small_config(data__name="relu_teacher"))
    plan = plan._replace(task=plan.task._replace(test=None))
    path = path_module.fit_path(plan, Console(quiet=True))
    assert [len(point.merged) for point in path] == [4, 2]
    assert any(choose(path, 1.0) is point for point in path)


def nonzero(chain):
    return sum(int(np.count_nonzero(layer.kernel)) for layer in chain)


def test_a_sparse_refit_keeps_its_zeros(tmp_path):
    config = small_config(sparsity__rule="rst", sparsity__density=0.2, train__steps=30,
                          layer_sparsity__refit_keep_zeros=True)  # fmt: skip
    plan = layer_sparsity.prepare(config)
    merged = random_chain((64, 12, 10))
    merged[1].kernel[::2] = 0
    for cold in (False, True):
        refitted = path_module.refit(plan, merged, cold=cold)
        assert not np.asarray(refitted[1].kernel)[::2].any()
        assert np.asarray(refitted[1].kernel)[1::2].all()


def test_connections_and_units_of_a_refit_become_exactly_0(tmp_path):
    config = small_config(train__steps=100, optimizer__learning_rate=1e-2)
    plan = layer_sparsity.prepare(config)
    merged = random_chain((64, 12, 10))
    config.layer_sparsity.refit_l1 = 0.5
    sparse = path_module.refit(plan, merged, cold=True)
    total = sum(layer.kernel.size for layer in merged)
    assert 0.1 * total < nonzero(sparse) < 0.9 * total
    config.layer_sparsity.refit_l1, config.layer_sparsity.refit_row_group = 0.0, 5.0
    narrow = path_module.refit(plan, merged, cold=True)
    width = narrow[0].kernel.shape[1]
    assert 1 <= width < 12
    assert [layer.kernel.shape for layer in narrow] == [(64, width), (width, 10)]
    assert np.asarray(narrow[0].kernel).any(axis=0).all()


def test_nonnegative_input_lets_the_first_layer_merge(tmp_path):
    config = small_config(data__mean=(0.0,), data__std=(1.0,), penalty__beta=1e-3)
    plan = layer_sparsity.prepare(config)
    assert plan.task.nonnegative_input
    fitted = fit(plan, plan.hidden, strengths=Strengths(200.0))
    assert active_layers(fitted, nonnegative_input=True) == ()
    assert len(merge_layers(fitted, nonnegative_input=True)) == 1


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


@pytest.mark.parametrize("width", [40, 80])
def test_no_number_of_the_tables_is_cut(width):
    errors = dict.fromkeys(
        ("validation_error", "warm_validation_error", "cold_validation_error", "standard_error"),
        0.1234,
    )
    size = {"depth": 9, "multiply_adds": 217_000}
    network = Network(
        "oracle depth", 9, 8, [128] * 8, 218_034, 217_000, 216_000, 0.12, 0.13, 12345.0, 1.0
    )
    result = {
        "chosen_strength": 5.5, "chosen_merged": True, "chosen_start": "warm",
        "error": "squared error",
        "inference_batch": 2000, "device": "cpu", "networks": [network._asdict()],
        "path": [{"strength": 5.5, "active": range(8), **size, **errors}],
    }  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    for table in (path_table, networks_table):
        text = table(result)._replace(title="")
        print_table(text, console)
        for cell in [*text.columns, *text.rows[0]]:
            assert cell in console.file.getvalue()
    if width == 80:
        assert max(map(len, console.file.getvalue().splitlines())) <= 80


def test_choice_is_the_shallowest_within_standard_errors():
    def point(strength, depth, error):
        chain = random_chain([3] * (depth + 1))
        warm = Estimate(error, 0.01)
        return Point(strength, *[chain] * 4, Estimate(1.0, 0.0), warm, Estimate(0.5, 0.01))

    path = [point(0, 5, 0.105), point(1, 4, 0.10), point(2, 3, 0.108), point(3, 2, 0.2)]
    assert choose(path, 1.0).strength == 2
    assert choose(path, 0.0).strength == 1
    assert choose(path, 10.0).strength == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_sparsity__strengths": (2.0, 1.0)}, "expected numbers above 0, increasing"),
        ({"layer_sparsity__strengths": (0.0, 1.0)}, "expected numbers above 0, increasing"),
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


def test_a_path_ends_where_training_diverges(tmp_path, monkeypatch):
    plan = layer_sparsity.prepare(small_config(train__steps=5))

    def diverging(*args, strengths=Strengths(), **kwargs):  # noqa: B008
        chain = random_chain((64, 12, 12, 12, 10))
        return jax.tree.map(lambda a: a * jnp.nan, chain) if strengths.layer else chain

    monkeypatch.setattr(path_module, "fit", diverging)
    path = path_module.fit_path(plan, Console(quiet=True))
    assert [point.strength for point in path] == [0]


def test_the_teacher_is_standardized_and_a_function_of_the_seed():
    options = default_config().layer_sparsity.teacher
    task, same, other = (tasks.teacher_task(options, seed) for seed in (0, 0, 1))
    assert task.train.inputs.shape == (4000, 10)
    assert task.test.targets.shape == task.validation.targets.shape == (2000, 1)
    np.testing.assert_array_equal(task.train.targets, same.train.targets)
    assert (np.asarray(task.train.targets) != other.train.targets).any()
    targets = np.concatenate([s.targets for s in (task.train, task.validation, task.test)])
    assert targets.mean() == pytest.approx(0, abs=0.02)
    assert targets.var() == pytest.approx(1 + 0.3**2, rel=0.05)


def test_the_penalty_ends_at_its_share_of_the_run():
    config = small_config(train__steps=4, penalty__beta=0.1, penalty__end=0.5)
    plan = layer_sparsity.prepare(config)
    trainer, train = make_trainer(plan, plan.hidden), plan.task.train
    state = trainer.first_state(None)
    batch = {"image": train.inputs[:64], "label": train.targets[:64]}
    on = []
    for _ in range(4):
        state, metrics = trainer.step(state, batch)
        on.append(not np.isnan(metrics["penalty"]))
    assert on == [True, True, False, False]


def test_without_strengths_there_is_no_path():
    with pytest.raises(ConfigError, match="strengths is empty, which is an ordinary run"):
        layer_sparsity.prepare(small_config(layer_sparsity__strengths=()))


def test_layer_sparsity_takes_one_device_whatever_there_are(tmp_path):
    config = small_config(train__batch_size=50, train__steps=1)  # four fake devices
    assert workflows.run(config, tmp_path / "run", Console(quiet=True))["steps"] == 1
