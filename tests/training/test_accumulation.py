"""A batch taken in parts: the same gradient, with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax import make_rule, sparsify
from cka_sr_jax.models import create_model
from cka_sr_jax.training import (
    cka_sr,
    classification_loss,
    create_state,
    make_train_step,
)
from cka_sr_jax.training.build import state_shapes, train_step
from cka_sr_jax.training.loop import prepare
from tests.training.runs import config_with

IMAGES = jax.random.normal(jax.random.key(1), (32, 8, 8, 1))
BATCH = {"image": IMAGES, "label": jnp.arange(32, dtype=jnp.int32) % 10}
SGD = sparsify(optax.sgd(0.1, momentum=0.9), make_rule("dense"))


@functools.cache
def mlp(width=24):
    return create_model("mlp", 10, hidden=(width, width))


@functools.cache
def first_state(model):
    init = jax.jit(functools.partial(model.init, train=False))
    return create_state(init(jax.random.key(0), IMAGES[:2]), SGD)


def jitted(loss, **options):
    return jax.jit(make_train_step(loss, SGD, **options), static_argnums=2)


def assert_close(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


@pytest.mark.parametrize("parts", [2, 8])
def test_without_batch_norm_and_penalty_parts_are_the_whole_batch(parts):
    loss = classification_loss(mlp(), label_smoothing=0.1)
    whole, in_parts = jitted(loss), jitted(loss, accumulate=parts)
    one = many = first_state(mlp())
    for _ in range(3):
        one, expected = whole(one, BATCH, None)
        many, metrics = in_parts(many, BATCH, None)
        assert_close(many, one)
        assert_close(metrics, expected)
    assert many.step == 3


@pytest.mark.slow
def test_with_batch_norm_and_penalty_parts_are_steps_of_a_loop_whose_gradients_are_averaged():
    model, parts = create_model("resnet8", 10, width=2), 3
    batch = jax.tree.map(lambda a: a[:24], BATCH)
    state = first_state(model)
    loss = classification_loss(model, cka_sr(0.1, samples=4, batches=2, pairs="all"))
    after, metrics = jitted(loss, accumulate=parts)(state, batch, None)

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=4)
    statistics, grads, seen = state.batch_stats, [], []
    for i in range(parts):
        part = jax.tree.map(lambda a, i=i: a[8 * i : 8 * (i + 1)], batch)
        each, (values, statistics) = grad(state.params, statistics, part, state.step, None)
        grads.append(each)
        seen.append(values)
    mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *grads)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, mean)
    assert_close(after.params, expected)
    assert_close(after.batch_stats, statistics)
    assert metrics.keys() - {"finite"} == seen[0].keys() == {*seen[0], "penalty"}
    for name in seen[0]:
        np.testing.assert_allclose(metrics[name], np.mean([v[name] for v in seen]), rtol=1e-5)


def test_a_step_without_the_penalty_is_one_for_all_parts():
    loss = classification_loss(mlp(), cka_sr(0.1, samples=4, every=2))
    step, state = jitted(loss, accumulate=4), first_state(mlp())
    for number in range(3):
        state, metrics = step(state, BATCH, None)
        assert jnp.isnan(metrics["penalty"]) == (number % 2 == 1)
        assert (metrics["loss"] == metrics["task_loss"]) == (number % 2 == 1)


def test_devices_and_their_parts_are_the_whole_batch():
    state, loss = first_state(mlp()), classification_loss(mlp())
    expected, _ = jitted(loss)(state, BATCH, None)
    step = make_train_step(loss, SGD, accumulate=4)
    shards = jax.tree.map(lambda a: a.reshape(2, 16, *a.shape[1:]), BATCH)
    states, _ = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="batch"))(state, shards)
    for device in (0, 1):
        assert_close(jax.tree.map(lambda a, i=device: a[i], states), expected)


def test_parts_need_less_memory():
    model = mlp(32)
    state, loss = first_state(model), classification_loss(model)
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((4096, *a.shape[1:]), a.dtype), BATCH)
    whole, in_parts = (
        jitted(loss, accumulate=n).lower(state, batch, None).compile().memory_analysis()
        for n in (1, 8)
    )
    assert in_parts.temp_size_in_bytes < 0.4 * whole.temp_size_in_bytes


def test_parts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"^accumulate=0: expected 1 part of the batch or more\.$"):
        make_train_step(classification_loss(mlp()), SGD, accumulate=0)
    step = make_train_step(classification_loss(mlp()), SGD, accumulate=3)
    with pytest.raises(ValueError, match=r"^a device's batch of 32 examples does not divide into "):
        step(first_state(mlp()), BATCH, None)


def test_a_config_says_the_parts():
    config = config_with(train__batch_size=64, train__accumulate=4, penalty__samples=4)
    plan = prepare(config)
    step = jax.make_jaxpr(train_step(plan, 0, 1e-4), static_argnums=2)
    batch = jax.tree.map(lambda a: jnp.concatenate([a, a]), BATCH)
    eqns = step(state_shapes(plan), batch, None).eqns
    if len(eqns) == 1:  # newer versions of JAX inline the traced step later
        eqns = eqns[0].params["jaxpr"].eqns
    scans = [eqn for eqn in eqns if eqn.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [4]
