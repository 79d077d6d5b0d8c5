"""On an accelerator: the same masks as on the CPU, and CKA to the precision of float32.

  JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_accelerator.py

Skipped where there is none.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax import cka_penalty, get_masks, make_rule, sparse_init, sparsify
from cka_sr_jax.sparsity import RULES
from cka_sr_jax.training import map_devices

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator")

EVERY_STEP = {"end_step": 4, "update_every": 1}
OPTIONS = {  # of each rule, beside its density
    "channels": EVERY_STEP,
    "gmp": EVERY_STEP,
    "granet": {**EVERY_STEP, "initial_density": 0.6},
    "mest": EVERY_STEP,
    "rigl": EVERY_STEP,
    "rst": {},
    "set": EVERY_STEP,
    "snfs": EVERY_STEP,
}


def on(platform):
    return jax.default_device(jax.local_devices(backend=platform)[0])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masks_after_updates(name, platform):
    """Masks after four updates by the same gradients, each with new random numbers."""
    params = {"conv": {"kernel": normal(0, 3, 3, 16, 32)}, "head": {"kernel": normal(1, 512, 10)}}
    with on(platform):
        params = jax.device_put(params)
        tx = sparsify(optax.sgd(0.0), make_rule(name, density=0.3, **OPTIONS[name]))
        params, state = sparse_init(tx, params)
        update = jax.jit(tx.update)
        for step in range(4):
            grads = jax.tree.map(lambda p, step=step: normal(step + 2, *p.shape), params)
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return jax.device_get(get_masks(state))


def test_every_rule_is_tried():
    assert OPTIONS.keys() == RULES.keys() - {"dense", "static"}


@pytest.mark.parametrize("name", OPTIONS)
def test_masks_are_those_of_the_cpu(name):
    ours = masks_after_updates(name, jax.default_backend())
    for mask, other in zip(
        jax.tree.leaves(ours), jax.tree.leaves(masks_after_updates(name, "cpu")), strict=True
    ):
        np.testing.assert_array_equal(mask, other)


def penalty_by_the_formula(layers):
    """sum over ordered pairs of debiased CKA, in float64, with the traces written out."""

    def hsic(k, m):
        n, one = len(k), np.ones(len(k))
        sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + sums - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    grams = []
    for layer in layers:
        flat = layer.reshape(len(layer), -1).astype(np.float64)
        gram = flat @ flat.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    return sum(
        hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)) for k in grams for m in grams if k is not m
    )


@pytest.mark.parametrize("samples", [8, 128])
def test_the_penalty_has_the_precision_of_float32(samples):
    shared = normal(0, samples, 16, 16, 32)  # so that layers are as alike as those of a network
    layers = [shared + 0.3 * normal(i, samples, 16, 16, 32) for i in (1, 2, 3)]
    value = jax.jit(cka_penalty)({"stage": tuple(map(jnp.asarray, layers))})
    np.testing.assert_allclose(value, penalty_by_the_formula(layers), rtol=2e-5)


@pytest.mark.parametrize("samples", [8, 128])
def test_the_gradient_is_that_of_the_cpu(samples):
    layers = tuple(normal(i, samples, 16, 16, 32) for i in range(3))
    gradients = []
    for platform in (jax.default_backend(), "cpu"):
        with on(platform):
            gradient = jax.jit(jax.grad(cka_penalty))({"stage": jax.device_put(layers)})
            gradients.append(jax.device_get(gradient["stage"]))
    for ours, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_a_mapped_step_runs_on_all_devices(parallel):
    devices = jax.local_devices()

    def mean(state, shard, data, axis_name):
        value = shard.sum()
        return state + (jax.lax.psum(value, axis_name) if axis_name else value), data

    call = map_devices(mean, devices, parallel=parallel)
    shard = np.arange(4.0 * len(devices), dtype=np.float32)
    total, _ = call(jnp.zeros(()), shard, jnp.ones(3))
    assert float(jax.device_get(total)) == shard.sum()
