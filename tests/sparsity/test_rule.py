"""`map_layers`: a function of one layer over a whole tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import layers_of, map_layers

PARAMS = {
    "one": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)},
    "two": {"kernel": 10 * jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)},
    "blocks": {"kernel": 100 * jnp.arange(12.0).reshape(2, 3, 2), "bias": jnp.ones((2, 2))},
}
LAYERS = layers_of(PARAMS, stacked={"blocks": 1})
MASKS = {
    name: {"kernel": layer["kernel"] > 0, "bias": optax.MaskedNode()}
    for name, layer in PARAMS.items()
}
GRADS = jax.tree.map(lambda param: -param, PARAMS)


def test_the_function_sees_each_layer_alone():
    seen = set()

    def total(layer, key, mask, param, grad, value):
        seen.add((mask.shape, param.shape, grad.shape))
        return (
            value * jnp.sum(param)
            + jnp.sum(jnp.where(mask, grad, 0))
            - jnp.sum(mask, dtype=jnp.float32)
        )

    values = {"one/kernel": 1.0, "two/kernel": 2.0, "blocks/kernel": np.array([3.0, 4.0])}
    found = map_layers(total, jax.random.key(0), LAYERS, MASKS, PARAMS, GRADS, values)
    assert seen == {((3, 2), (3, 2), (3, 2))}
    assert found["one/kernel"] == 15 - 15 - 5
    assert found["two/kernel"] == 300 - 150 - 5
    np.testing.assert_array_equal(
        found["blocks/kernel"], [3 * 1500 - 1500 - 5, 4 * 5100 - 5100 - 6]
    )


def test_each_layer_has_a_key_of_its_own_that_depends_on_its_path():
    def draw(layer, key, mask, param, grad):
        return jax.random.uniform(key)

    def drawn(layers, masks):
        return map_layers(draw, jax.random.key(0), layers, masks, PARAMS, GRADS)

    found = drawn(LAYERS, MASKS)
    numbers = np.concatenate([np.ravel(value) for value in found.values()])
    assert len(set(numbers.tolist())) == 4
    alone = drawn(LAYERS, {"two": MASKS["two"]})
    assert alone.keys() == {"two/kernel"}
    assert alone["two/kernel"] == found["two/kernel"]


def test_masks_of_a_parameter_that_stays_dense_are_refused():
    masks = {**MASKS, "one": {"kernel": MASKS["one"]["kernel"], "bias": jnp.ones(2, bool)}}
    with pytest.raises(ValueError, match="the masks prune one/bias, which the rule keeps dense"):
        map_layers(lambda *_: 0, jax.random.key(0), LAYERS, masks, PARAMS, GRADS)
