"""One function on one device and on four, by both ways to map it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.training import map_devices, replicate


def mean_product(state, shard, data, axis_name):
    mean = jnp.mean(shard * data)
    return state + (mean if axis_name is None else jax.lax.pmean(mean, axis_name))


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_shards_are_split_and_the_rest_is_the_same_on_every_device(parallel, count):
    devices = jax.devices()[:count]
    mapped = map_devices(mean_product, devices, parallel=parallel)
    state, data = replicate((jnp.ones(()), jnp.asarray(3.0)), devices)
    result = mapped(state, jnp.arange(8.0), data)
    np.testing.assert_allclose(result, 1 + 3 * 3.5)


def test_what_is_replicated_has_memory_of_its_own():
    devices = jax.devices()
    original = jnp.arange(3.0)
    copy = replicate(original, devices)
    assert copy.devices() == set(devices)
    step = map_devices(lambda s, shard, data, axis_name: s + 1, devices, donate_state=True)
    np.testing.assert_array_equal(step(copy, jnp.zeros(4), 0.0), original + 1)
    np.testing.assert_array_equal(original, [0, 1, 2])  # donating the copy left it alone
