"""Each step's examples are a function of the plan's seed and the step, in memory and streamed."""

import dataclasses
import functools
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.data import TrainingBatches, normalize
from cka_sr_jax.training import ConfigError, input, loop, new_state
from cka_sr_jax.training.evaluation import accuracy_function
from cka_sr_jax.training.input import (
    evaluation_shards,
    open_feed,
    step_indices,
    train_on_examples,
    training_data,
)
from cka_sr_jax.training.parallel import replicate
from cka_sr_jax.workflows import run
from tests.tfds_sets import jpeg, write_photographs
from tests.training.runs import arrays, assert_same_run, records, small_config


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """57 photographs to train on, 7 of which are for validation, and 9 to test on."""
    folder = tmp_path_factory.mktemp("sets")
    write_photographs(folder / "tiny/1.0.0", train=57, test=9)
    return folder


def streamed_config(sets, **fields):
    """Four epochs of six steps, with a checkpoint within one."""
    settings = dict(
        data__name="tiny", data__dir=str(sets), data__stream=True, data__crop=8,
        data__validation=0.125, data__mean=(0.5, 0.5, 0.5), data__std=(0.25, 0.25, 0.25),
        data__flip=True, train__batch_size=8, train__steps=24, eval__batch_size=4,
        penalty__beta=0.0, model__options__hidden=(8, 8),
    )  # fmt: skip
    return small_config(**settings | fields)


def quiet():
    return Console(quiet=True)


def test_an_epoch_has_no_example_twice_and_another_seed_another_order():
    config = small_config()
    plan = loop.prepare(config)
    data = training_data(plan)
    assert len(data["image"]) == len(data["label"]) == len(plan.dataset.train_labels)
    epoch = [step_indices(plan, step) for step in range(plan.steps_per_epoch)]
    assert {len(indices) for indices in epoch} == {config.train.batch_size}
    assert len(np.unique(np.concatenate(epoch))) == plan.steps_per_epoch * config.train.batch_size
    np.testing.assert_array_equal(step_indices(plan, 1), epoch[1])
    config.seed += 1
    assert (step_indices(dataclasses.replace(plan, config=config), 1) != epoch[1]).any()


def test_a_feed_in_memory_gives_the_indices_from_its_first_step_on():
    plan = loop.prepare(small_config())
    with open_feed(plan, 5) as feed:
        for step in (5, 6, 7):
            np.testing.assert_array_equal(feed.next(None), step_indices(plan, step))
        assert feed.waited is None


def test_a_streamed_feed_gives_the_batches_from_its_first_step_on(sets):
    plan = loop.prepare(streamed_config(sets))
    assert plan.steps_per_epoch == 6
    assert training_data(plan) == {}
    source = TrainingBatches(plan.dataset.train_images, 0, 8, range(24), np.arange(8))
    with open_feed(plan, 5) as feed:
        for step in (5, 6, 7):
            shard = feed.next(None)
            np.testing.assert_array_equal(shard["index"], step_indices(plan, step))
            for name, array in source[step].items():
                np.testing.assert_array_equal(shard[name], array)


@pytest.mark.slow
def test_a_streamed_step_is_that_of_its_images_in_memory(sets):
    """The device flips and normalizes: the same step as on a set in memory of these very crops."""
    plan = loop.prepare(streamed_config(sets))
    batch = TrainingBatches(plan.dataset.train_images, 0, 8, range(24), np.arange(8))[3]
    state = new_state(plan)
    actual, metrics = on_one_device(plan)(state, batch, {})
    images = np.zeros((50, 8, 8, 3), np.uint8)
    labels = np.zeros(50, np.int32)
    images[batch["index"]], labels[batch["index"]] = batch["image"], batch["label"]
    dataset = plan.dataset._replace(train_images=images, train_labels=labels)
    in_memory = on_one_device(dataclasses.replace(plan, dataset=dataset))
    expected, others = in_memory(state, batch["index"], {"image": images, "label": labels})
    jax.tree.map(np.testing.assert_array_equal, (actual, metrics), (expected, others))


def on_one_device(plan):
    return jax.jit(functools.partial(train_on_examples(plan, 0, 1e-4), axis_name=None))


def test_evaluation_is_that_of_the_center_crops(sets):
    plan = loop.prepare(streamed_config(sets))
    data = plan.dataset
    images, labels = data.test_images[:], data.test_labels[:]
    shards = list(evaluation_shards(plan, data.test_images, data.test_labels, 4))
    weights = np.concatenate([shard["weight"] for shard in shards])
    assert weights.sum() == 9
    kept = np.concatenate([shard["image"] for shard in shards])[weights > 0]
    np.testing.assert_array_equal(kept, images)
    state = new_state(plan)
    accuracy = accuracy_function(plan)
    measured = accuracy(replicate(state, plan.devices), data.test_images, data.test_labels)
    inputs = normalize(images, plan.mean, plan.std)
    logits = jax.jit(functools.partial(plan.model.apply, train=False))(
        {"params": state.params}, inputs
    )
    assert measured["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


@pytest.mark.usefixtures("blank_images")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_that_was_interrupted_ends_bit_for_bit(sets, workers, tmp_path, monkeypatch):
    whole = run(streamed_config(sets), tmp_path / "whole", quiet())
    assert whole["steps"] == 24
    assert 0 <= whole["data_wait"] <= 1
    training = records(tmp_path / "whole", "train")
    assert [r["step"] for r in training] == [10, 20, 24]
    assert all(0 <= r["data_wait"] <= 1 for r in training)
    config = streamed_config(sets, data__workers=workers)
    with monkeypatch.context() as patch:
        patch.setattr(input.StreamFeed, "next", stop_after(21))
        with pytest.raises(InterruptedError):
            run(config, tmp_path / "stopped", quiet())
    run(config, tmp_path / "stopped", quiet())  # from the checkpoint of step 15, within epoch 2
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    losses = [
        [r["loss"] for r in records(tmp_path / name, "train") if r["step"] > 20]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def stop_after(steps):
    """`StreamFeed.next` that ends the program after so many steps."""
    whole, calls = input.StreamFeed.next, []

    def next_or_stop(self, running):
        if len(calls) == steps:
            jax.block_until_ready(running)
            raise InterruptedError
        calls.append(1)
        return whole(self, running)

    return next_or_stop


@pytest.mark.slow
@pytest.mark.usefixtures("blank_images")
def test_a_streamed_run_is_the_same_under_shard_map_and_learns(sets, tmp_path):
    fields = {"train__steps": 120, "sparsity__density": 0.9, "optimizer__learning_rate": 0.01}
    run(streamed_config(sets, **fields), tmp_path / "pmap", quiet())
    training = records(tmp_path / "pmap", "train")
    assert training[-1]["loss"] < 0.8 * training[0]["loss"]
    fields["train__parallel"] = "shard_map"
    run(streamed_config(sets, **fields), tmp_path / "shard_map", quiet())
    one, other = arrays(tmp_path / "pmap"), arrays(tmp_path / "shard_map")
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], atol=1e-4, err_msg=path)


def test_waiting_is_counted_where_data_are_late_only(sets, monkeypatch):
    plan = loop.prepare(streamed_config(sets))
    with open_feed(plan, 0) as feed:
        for _ in range(4):
            feed.next(None)
            time.sleep(0.1)  # a long step: the next batch is there before it ends
        early = feed.waited
        feed.next(None)
        assert feed.waited == early
    get = TrainingBatches.__getitem__
    monkeypatch.setattr(
        TrainingBatches, "__getitem__", lambda self, i: (time.sleep(0.2), get(self, i))[1]
    )
    with open_feed(plan, 22) as feed:
        feed.next(None)
        assert feed.waited > 0.15


def test_a_damaged_record_ends_the_run_with_one_sentence(tmp_path):
    def damage(image, calls=[]):  # noqa: B006
        calls.append(1)
        return jpeg(image)[: -200 if len(calls) == 12 else None]

    write_photographs(tmp_path / "tiny/1.0.0", encode=damage, train=57, test=9)
    plan = loop.prepare(streamed_config(tmp_path, train__batch_size=48))
    wrong = "split 'train': record 11 cannot be decoded"
    with open_feed(plan, 0) as feed, pytest.raises(ConfigError, match=wrong) as error:
        feed.next(None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_images")
@pytest.mark.parametrize("rule", ["snip", "synflow", "ntt"])
def test_pruners_look_at_the_images_that_they_need(sets, rule, tmp_path):
    options = {"sparsity__rounds": 2} if rule == "ntt" else {}
    config = streamed_config(sets, sparsity__rule=rule, **options)
    config.train.steps = 2
    assert run(config, tmp_path / "run", quiet())["density"] == pytest.approx(0.2, abs=0.01)


def test_a_pruner_that_needs_all_labels_is_refused_before_anything_is_written(sets, tmp_path):
    config = streamed_config(sets, sparsity__rule="grasp")
    with pytest.raises(ConfigError, match="needs the labels of all 50 examples in memory, and"):
        run(config, tmp_path / "run", quiet())
    assert not list((tmp_path / "run").glob("*.json"))
