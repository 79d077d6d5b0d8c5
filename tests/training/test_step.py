"""The pure train and eval steps: the loss they minimize, and one device against four."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax import apply_masks, cka_penalty, get_masks, make_rule, sparsify
from cka_sr_jax.models import create_model
from cka_sr_jax.similarity import cca_penalty
from cka_sr_jax.training import (
    Penalty,
    TrainState,
    cka_sr,
    classification_loss,
    create_state,
    cross_entropy,
    make_eval_step,
    make_train_step,
    map_devices,
    replicate,
)

IMAGES = jax.random.normal(jax.random.key(1), (32, 8, 8, 1))
LABELS = jnp.arange(32, dtype=jnp.int32) % 10
BATCH = {"image": IMAGES, "label": LABELS}


def mlp():
    return create_model("mlp", 10, hidden=(24, 24, 24))


@functools.cache  # `first_state` initializes each model once
def make_tx(density=0.3):
    return sparsify(optax.sgd(0.1, momentum=0.9), make_rule("rst", density=density))


@functools.cache
def first_state(model, tx):
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), IMAGES[:2])
    return create_state(variables, tx)


def make_step(model, tx, penalty=None):
    return make_train_step(classification_loss(model, penalty), tx)


def test_cross_entropy_with_label_smoothing():
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], np.float32)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    plain = -logp[[0, 1], [2, 0]]
    np.testing.assert_allclose(
        cross_entropy(jnp.array(logits), jnp.array([2, 0])), plain, rtol=1e-6
    )
    smooth, logits = 0.9 * plain - 0.1 * logp.mean(1), jnp.array(logits)
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([2, 0]), 0.1), smooth, rtol=1e-6)


@pytest.mark.parametrize("similarity", [cka_penalty, cca_penalty])
def test_step_minimizes_task_loss_plus_beta_times_penalty(similarity):
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    step = make_step(model, tx, Penalty(lambda x, _: similarity(x, samples=8), 0.1))

    def loss(params):
        logits, sown = model.apply({"params": params}, IMAGES, train=True, mutable=["features"])
        penalty = similarity(jax.tree.map(lambda x: x[:8], sown["features"]))
        return cross_entropy(logits, LABELS).mean() + 0.1 * penalty, penalty

    (value, penalty), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    updates, _ = jax.jit(tx.update)(grads, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    after, metrics = jax.jit(step, static_argnums=2)(state, BATCH, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["penalty"], penalty, rtol=1e-4)
    assert after.step == 1


def test_penalty_only_in_every_third_step():
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    with_penalty = jax.jit(make_step(model, tx, cka_sr(0.5, every=3, samples=8)), static_argnums=2)
    without = jax.jit(make_step(model, tx), static_argnums=2)
    for step in range(5):
        plain, _ = without(state, BATCH, None)
        state, metrics = with_penalty(state, BATCH, None)
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, plain.params)
        assert all(jax.tree.leaves(equal)) == (step % 3 != 0)
        assert jnp.isnan(metrics["penalty"]) == (step % 3 != 0)
        if step % 3:
            np.testing.assert_allclose(metrics["loss"], metrics["task_loss"])


def test_penalty_only_before_its_end():
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    step = jax.jit(make_step(model, tx, cka_sr(0.5, end=2, samples=8)), static_argnums=2)
    for number in range(4):
        state, metrics = step(state, BATCH, None)
        assert jnp.isnan(metrics["penalty"]) == (number >= 2)
        assert (metrics["loss"] == metrics["task_loss"]) == (number >= 2)


@pytest.mark.parametrize("every", [1, 5])
def test_a_penalty_on_few_samples_needs_little_memory(every):
    model, tx = create_model("mlp", 10, hidden=(32, 32)), make_tx()
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((4096, *a.shape[1:]), a.dtype), BATCH)
    without, few = (
        jax.jit(make_step(model, tx, penalty), static_argnums=2)
        .lower(first_state(model, tx), batch, None)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for penalty in (None, cka_sr(0.1, samples=8, every=every))
    )
    assert few < 1.05 * without


@pytest.mark.parametrize("every", [1, 2])
def test_features_of_different_lengths_are_refused_whatever_the_samples(every):
    features = {"stage1": (jnp.ones((32, 3)), jnp.ones((12, 32, 3)))}
    with pytest.raises(ValueError, match="do not share a leading sample axis"):
        cka_sr(0.1, samples=8, every=every).term(features, jnp.zeros((), jnp.int32), None)


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_four_devices_train_as_one(parallel):
    """Without BatchNorm: 4 devices of 8 images against one of 32 with 4 CKA sub-batches of 8."""
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    alone = jax.jit(make_step(model, tx, cka_sr(0.1, samples=8, batches=4)), static_argnums=2)
    step = make_step(model, tx, cka_sr(0.1, samples=8, sync=True))
    devices = jax.devices()[:4]
    assert len(devices) == 4
    mapped = map_devices(
        lambda state, batch, _, axis_name: step(state, batch, axis_name),
        devices,
        parallel=parallel,
        donate_state=True,
    )
    one, many = state, replicate(state, devices)
    for _ in range(5):
        one, one_metrics = alone(one, BATCH, None)
        many, many_metrics = mapped(many, BATCH, None)
        jax.block_until_ready(many)  # fake devices dead-lock on few cores otherwise
    # The state that was replicated is still there: only its copies were donated.
    assert state.params["head"]["kernel"].shape == (24, 10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, many.params)
    for name in one_metrics:
        np.testing.assert_allclose(one_metrics[name], many_metrics[name], rtol=1e-4)
    for mask, mask_one in zip(
        jax.tree.leaves(get_masks(many.opt_state)),
        jax.tree.leaves(get_masks(one.opt_state)),
        strict=True,
    ):
        shards = [np.asarray(shard.data) for shard in mask.addressable_shards]
        assert len(shards) == 4
        for shard in shards:
            np.testing.assert_array_equal(shard.reshape(mask_one.shape), mask_one)


def test_vmap_stands_for_devices_in_a_test():
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    step = make_step(model, tx, cka_sr(0.1, samples=8))
    shards = jax.tree.map(lambda a: a.reshape(2, 16, *a.shape[1:]), BATCH)
    states, _ = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="batch"))(state, shards)
    for leaf in jax.tree.leaves(states.params):
        np.testing.assert_array_equal(leaf[0], leaf[1])


@pytest.mark.slow
def test_batch_norm_statistics_are_averaged_over_devices():
    model = create_model("resnet8", 10, width=4)
    tx = make_tx()
    state = first_state(model, tx)
    step = make_step(model, tx)
    shards = jax.tree.map(lambda a: a.reshape(2, 16, *a.shape[1:]), BATCH)
    states, _ = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="batch"))(state, shards)
    mean = states.batch_stats["stem_bn"]["mean"]
    np.testing.assert_array_equal(mean[0], mean[1])
    assert (mean[0] != state.batch_stats["stem_bn"]["mean"]).any()


def test_eval_step_leaves_padding_out():
    model, tx = mlp(), make_tx()
    state = first_state(model, tx)
    weight = jnp.ones(32).at[20:].set(0)
    evaluate = jax.jit(make_eval_step(model), static_argnums=2)
    sums = evaluate(state, {**BATCH, "weight": weight}, None)
    logits = model.apply({"params": state.params}, IMAGES[:20], train=False)
    np.testing.assert_allclose(sums["loss"], cross_entropy(logits, LABELS[:20]).sum(), rtol=1e-5)
    assert sums["correct"] == (logits.argmax(-1) == LABELS[:20]).sum()
    assert sums["weight"] == 20


def test_initial_parameters_are_pruned():
    state = first_state(mlp(), make_tx(0.1))
    masked = apply_masks(state.params, get_masks(state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, masked, state.params)


def test_a_third_party_model_without_features_trains_with_beta_zero():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(10)(x.reshape(len(x), -1))

    tx = make_tx()
    state = first_state(Plain(), tx)
    state, metrics = jax.jit(make_step(Plain(), tx), static_argnums=2)(state, BATCH, None)
    assert "penalty" not in metrics
    assert jnp.isfinite(metrics["loss"])


@jax.custom_vjp
def _gradient_alone(param, gradient):
    """0, whose gradient with respect to the parameter is given: the loss stays finite."""
    return jnp.zeros(())


_gradient_alone.defvjp(
    lambda param, gradient: (jnp.zeros(()), gradient.astype(param.dtype)),
    lambda gradient, _: (gradient, jnp.zeros(gradient.shape)),
)


@pytest.mark.parametrize("bad", [None, "weight", "large", "half", "statistic"])
def test_one_number_that_is_not_finite_is_told_wherever_it_is(bad):
    params = {
        "weight": jnp.ones((3, 4)),
        "large": jnp.ones((300, 300)),
        "half": jnp.ones((2, 3), jnp.bfloat16),
    }

    def loss(params, statistics, batch, step, axis_name):
        terms = [_gradient_alone(params[name], batch[name]) for name in params]
        return sum(terms), ({}, {"mean": batch["statistic"]})

    batch = {name: jnp.ones(p.shape) for name, p in params.items()}
    batch["statistic"] = jnp.ones(5)
    if bad:
        batch[bad] = batch[bad].at[(1,) * batch[bad].ndim].set(jnp.nan)
    tx = optax.sgd(0.1)
    state = TrainState(jnp.int32(0), params, {"mean": jnp.ones(5)}, tx.init(params))
    _, metrics = jax.jit(make_train_step(loss, tx), static_argnums=2)(state, batch, None)
    assert metrics["finite"] == (bad is None)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("what", ["image", "rate"])
def test_what_is_not_finite_is_told_and_can_be_skipped(what, skip):
    """An infinite image, whose sign alone the optimizer looks at; or weights that overflow."""
    model = mlp()
    overflow = optax.chain(optax.scale(1e30), optax.scale(-1e30))
    optimizer = optax.sign_sgd(0.1) if what == "image" else overflow
    tx = sparsify(optimizer, make_rule("rst", density=0.3))
    state = first_state(model, tx)
    step = make_train_step(classification_loss(model), tx, skip_not_finite=skip)
    step = jax.jit(step, static_argnums=2)
    bad = BATCH if what == "rate" else {**BATCH, "image": IMAGES.at[0, 0, 0, 0].set(jnp.inf)}
    after, metrics = step(state, bad, None)
    assert metrics["finite"] == 0
    assert after.step == 1
    if skip:
        for kept, before in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            if kept.shape or kept.dtype != jnp.int32:
                np.testing.assert_array_equal(kept, before)
    tx = make_tx()
    step = jax.jit(make_train_step(classification_loss(model), tx), static_argnums=2)
    _, metrics = step(first_state(model, tx), BATCH, None)
    assert metrics["finite"] == 1
