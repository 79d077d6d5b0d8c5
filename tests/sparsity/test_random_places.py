"""Random masks: exact counts at places that depend on the key and the path alone."""

import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.sparsity import random_masks, rst


def test_masks_differ_by_key_and_not_by_the_other_layers():
    params = {"a": jnp.ones((20, 20)), "b": jnp.ones((20, 20))}
    rule = rst(0.5, "uniform")
    one, two = (rule.init(jax.random.key(seed), params) for seed in (0, 1))
    assert (one["a"] != two["a"]).any()
    assert (one["a"] != one["b"]).any()
    alone = rule.init(jax.random.key(0), {"a": params["a"]})
    np.testing.assert_array_equal(alone["a"], one["a"])
    jitted = jax.jit(rule.init)(jax.random.key(0), params)
    np.testing.assert_array_equal(jitted["a"], one["a"])


def test_counts_are_exact_in_every_layer_of_a_stack():
    params = {"w": jnp.ones((3, 4, 5)), "v": jnp.ones((7, 2)), "b": jnp.ones(3)}
    counts = {"w": np.array([1, 0, 20]), "v": 9}
    masks = random_masks(jax.random.key(0), params, counts, stacked={"w": 1})
    np.testing.assert_array_equal(masks["w"].sum((1, 2)), counts["w"])
    assert int(masks["v"].sum()) == 9
    assert [mask.dtype for mask in jax.tree.leaves(masks)] == [bool, bool]


def test_every_place_is_as_likely():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: random_masks(key, {"w": jnp.ones((3, 4))}, {"w": 3})["w"])(keys)
    # Each place is kept by a quarter of the draws; 5 standard deviations are 0.034.
    np.testing.assert_allclose(drawn.mean(0), np.full((3, 4), 0.25), atol=0.034)
