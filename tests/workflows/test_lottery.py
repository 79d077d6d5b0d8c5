"""Lottery rounds: densities, nested masks, where each round starts, and resuming."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax.data import normalize
from cka_sr_jax.sparsity import attentive_scores
from cka_sr_jax.training import Checkpoints, ConfigError, default_config, load_variables, loop
from cka_sr_jax.workflows import lottery
from tests.report.fake_wandb import install

pytestmark = pytest.mark.usefixtures("blank_images")
LAYERS = ("hidden0", "hidden1", "head")


def small_config(**lottery_fields):
    config = default_config()
    config.model.options.hidden = (24, 24)
    config.train.steps = 12
    config.train.batch_size = 64
    config.train.log_every = 4
    config.checkpoint.every = 4
    config.sparsity.rule = "dense"
    config.penalty.beta = 1e-3
    config.lottery.update({"rounds": 2, "rewind": 0.25, **lottery_fields})
    return config


def quiet():
    return Console(file=io.StringIO())


def stored(folder, kind):
    checkpoints = Checkpoints(folder)
    arrays = checkpoints.arrays()
    checkpoints.close()
    prefix = {"masks": "state.opt_state.masks.", "params": "state.params."}[kind]
    return {layer: arrays[f"{prefix}{layer}.kernel"] for layer in LAYERS}


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    """One of the fake devices compiles sooner than four."""
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        patch.setattr(jax, "local_devices", lambda: device)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment, its result, and the state that each training started from."""
    workdir, starts, train = tmp_path_factory.mktemp("lottery"), [], loop.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "train", lambda *a: (starts.append(a[4](a[0]) if a[4:] else None), train(*a))[1]
        )
        return workdir, workflows.run(small_config(), workdir, quiet()), starts


@pytest.mark.slow
def test_rounds_keep_the_largest_of_what_is_left(finished):
    workdir, result, _ = finished
    size = 64 * 24 + 24 * 24 + 24 * 10
    kept = [row["density"] * size for row in result["rounds"]]
    np.testing.assert_allclose(kept, [size, round(0.8 * size), round(0.64 * size)], atol=0.01)
    for number in (1, 2):
        before = workdir / f"round{number - 1:02d}"
        weights, old = stored(before, "params"), stored(before, "masks")
        new = stored(workdir / f"round{number:02d}", "masks")
        pool = np.concatenate([np.abs(weights[layer][old[layer]]) for layer in LAYERS])
        threshold = np.sort(pool)[-round(kept[number])]
        for layer in LAYERS:
            expected = old[layer] & (np.abs(weights[layer]) >= threshold)
            np.testing.assert_array_equal(new[layer], expected)
            assert not stored(workdir / f"round{number:02d}", "params")[layer][~new[layer]].any()


@pytest.mark.slow
def test_every_round_starts_from_the_rewound_weights(finished):
    workdir, _, starts = finished
    rewound = stored(workdir / "rewind", "params")
    for start, number in zip(starts[1:], range(3), strict=True):  # the first trains up to there
        assert int(start.step) == 3
        masks = stored(workdir / f"round{number:02d}", "masks")
        for layer in LAYERS:
            expected = np.where(masks[layer], rewound[layer], 0)
            np.testing.assert_array_equal(start.params[layer]["kernel"], expected)
            slots = [
                np.asarray(leaf)
                for leaf in jax.tree.leaves(start.opt_state.inner_state)
                if leaf.shape == expected.shape
            ]
            assert slots
            assert all(slot.any() and not slot[~masks[layer]].any() for slot in slots)


@pytest.mark.slow
def test_the_penalty_ends_at_its_share_of_a_whole_round(tmp_path):
    """Not of the steps to the rewind point, which are trained first and once for all rounds."""
    config = small_config(rounds=0, rewind=8 / 12)
    config.train.log_every, config.penalty.end = 1, 0.5
    lottery.run(lottery.prepare(config), tmp_path, quiet())
    for folder, steps in (("rewind", range(1, 9)), ("round00", range(9, 13))):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        logged = [record for record in map(json.loads, lines) if record["split"] == "train"]
        penalized = {record["step"]: bool(record["penalty"]) for record in logged}
        assert penalized == {step: step <= 6 for step in steps}


def test_a_round_by_magnitude_in_each_layer(tmp_path):
    config = small_config(rounds=1, prune=0.75, rewind=0.0, score="layer-magnitude")
    workflows.run(config, tmp_path, quiet())
    weights = stored(tmp_path / "round00", "params")
    masks = stored(tmp_path / "round01", "masks")
    for layer in LAYERS:
        size, mask = np.abs(np.asarray(weights[layer])), np.asarray(masks[layer], bool)
        assert mask.sum() == round(0.25 * mask.size)
        assert size[mask].min() >= size[~mask].max()


def test_a_round_by_attention_keeps_the_best_of_each_layer(tmp_path):
    config = small_config(rounds=1, prune=0.75, rewind=0.0, score="attentive")
    config.train.steps = 60
    workflows.run(config, tmp_path, quiet())
    trained = load_variables(tmp_path / "round00")
    plan = lottery.prepare(config).dense
    images = normalize(jnp.asarray(plan.dataset.train_images[:1000]), plan.mean, plan.std)
    labels = plan.dataset.train_labels[:1000]
    scores = attentive_scores(plan.model, trained, images, labels)
    masks = stored(tmp_path / "round01", "masks")
    for layer in LAYERS:
        score, mask = scores[f"{layer}/kernel"], np.asarray(masks[layer], bool)
        assert mask.sum() == round(0.25 * mask.size)
        assert score[mask].min() >= score[~mask].max()
        if score[mask].min() == 0:  # then the largest weights
            size = np.abs(np.asarray(trained["params"][layer]["kernel"]))
            assert size[mask & (score == 0)].min() >= size[~mask & (score == 0)].max()


def test_attention_that_does_not_pass_the_model_is_refused_before_it_trains(tmp_path):
    config = small_config(rounds=1, score="attentive")
    config.model.name, config.model.options = "vit-micro", ConfigDict({"patch": 4})
    with pytest.raises(ConfigError, match="the selection does not pass the LayerNorm"):
        workflows.run(config, tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()


def test_thirteen_rounds_keep_a_fifth_less_each():
    """Densities 0.8^n of all weights to one weight, as far as open_lth's recipe goes."""
    params = {"a": jax.random.normal(jax.random.key(0), (30, 40)), "b": jax.numpy.ones((7, 9))}
    size, prune = 30 * 40 + 7 * 9, jax.jit(lottery.prune_by_magnitude)
    masks = jax.tree.map(lambda leaf: leaf == leaf, params)
    for n in range(1, 14):
        masks = prune(params, masks, round(0.8**n * size))
        assert sum(int(mask.sum()) for mask in masks.values()) == round(0.8**n * size)
    assert int(masks["b"].sum()) + int(masks["a"].sum()) == round(0.055 * size)


@pytest.mark.slow
def test_rounds_with_batch_norm_and_adamw(tmp_path):
    config = small_config(rounds=1, rewind=0.5)
    config.train.steps, config.train.batch_size = 2, 32
    config.model.name, config.model.options = "resnet8", ConfigDict({"width": 2})
    config.optimizer.name, config.penalty.beta = "adamw", 0.0
    result = workflows.run(config, tmp_path, quiet())
    assert [round(row["density"], 2) for row in result["rounds"]] == [1.0, 0.8]


@pytest.mark.slow
def test_an_interrupted_experiment_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    """Stopped inside round 1 and started again: the same masks and weights in the last round."""
    train = loop.train

    def stop_early(plan, workdir, *rest):
        if workdir.name == "round01":
            train(dataclasses.replace(plan, steps=8), workdir, *rest)
            raise KeyboardInterrupt
        return train(plan, workdir, *rest)

    monkeypatch.setattr(loop, "train", stop_early)
    with pytest.raises(KeyboardInterrupt):
        workflows.run(small_config(), tmp_path, quiet())
    trained = []
    monkeypatch.setattr(
        loop,
        "train",
        lambda plan, folder, *rest: (trained.append(folder.name), train(plan, folder, *rest))[1],
    )
    workflows.run(small_config(), tmp_path, quiet())
    assert trained == ["rewind", "round01", "round02"]  # the first has no step left
    for kind in ("masks", "params"):
        expected, actual = (stored(d / "round02", kind) for d in (finished[0], tmp_path))
        for layer in LAYERS:
            np.testing.assert_array_equal(actual[layer], expected[layer])


@pytest.mark.slow
def test_rewinding_to_the_initial_weights(tmp_path):
    config = small_config(rewind=0.0, rounds=1)
    workflows.run(config, tmp_path, quiet())
    with pytest.raises(ConfigError, match=r"lottery.prune is 0.2 there and 0.5 now"):
        workflows.run(small_config(rewind=0.0, rounds=1, prune=0.5), tmp_path, quiet())
    # Again: everything is there.
    shutil.rmtree(tmp_path / "round01" / "checkpoints")
    assert len(workflows.run(config, tmp_path, quiet())["rounds"]) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_result_is_made_again(content, finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "result.json").write_text(content)
    assert workflows.run(small_config(), workdir)["rounds"] == finished[1]["rounds"]
    assert "result.json is damaged, so it is made again" in capsys.readouterr().out


def test_a_round_without_its_last_checkpoint_goes_on(finished, tmp_path):
    """Else the next one would be pruned by the weights of the checkpoint before."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "round02")
    (newest,) = (workdir / "round01" / "checkpoints").glob("12")
    shutil.rmtree(newest / "default")
    again = workflows.run(small_config(), workdir, quiet())["rounds"]
    for row, before in zip(again, finished[1]["rounds"], strict=True):
        assert row["test"] == before["test"]
    assert Checkpoints(workdir / "round01").latest_step() == 12


def test_mistakes_are_one_sentence(tmp_path):
    for fields, message in (
        ({"prune": 1.0}, r"lottery.prune=1.0: expected a share of .* in \(0, 1\)"),
        (
            {"prune": 0.9999, "rounds": 1},
            "lottery.rounds=1 and lottery.prune=0.9999 leave none of the 2352 weights: prune less",
        ),
        ({"rewind": 0.99}, "lottery.rewind=0.99 leaves no step of the run's 12"),
    ):
        with pytest.raises(ConfigError, match=message):
            workflows.run(small_config(**fields), tmp_path / "run", quiet())
    config = small_config()
    config.sparsity.rule = "rst"
    with pytest.raises(ConfigError, match=r"sparsity.rule is 'rst': use 'dense'"):
        workflows.run(config, tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_each_round_is_a_run_of_wandb(tmp_path, monkeypatch):
    wandb, config = install(monkeypatch), small_config(rounds=1)
    config.report.wandb = "tickets"
    result = workflows.run(config, tmp_path, quiet())
    assert [started.options["name"] for started in wandb.runs] == ["round00", "round01"]
    for started, row in zip(wandb.runs, result["rounds"], strict=True):
        assert started.summary["test"] == row["test"]
        assert started.exit_code == 0
