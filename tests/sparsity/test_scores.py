"""Scores of the user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.sparsity import (
    constant,
    magnitude_and_gradient,
    make_rule,
    rigl,
    sparse_evolutionary,
)
from tests.sparsity.naive import random_layers


@pytest.mark.slow
def test_scores_may_be_plain_functions():
    def first(key, mask, param, grad):
        return -jnp.arange(param.size, dtype=jnp.float32).reshape(param.shape)

    half = constant(0.5)
    rule = rigl(
        0.3, "uniform", end_step=10, update_every=2, drop_fraction=half, drop=first, grow=first
    )
    params, grads = random_layers(0)
    masks = rule.init(jax.random.key(0), params)
    masks = rule.update(jax.random.key(1), jnp.int32(2), masks, params, grads)
    # The lowest-indexed half stays and the lowest-indexed free places are filled.
    flat = np.asarray(masks["a"]).ravel()
    assert flat.sum() == 9
    assert flat[:4].all()
    both = sparse_evolutionary(
        0.3,
        "uniform",
        end_step=10,
        update_every=2,
        drop=magnitude_and_gradient(0.5),
        grow="sensitivity",
    )
    masks = both.update(jax.random.key(1), jnp.int32(2), masks, params, grads)
    assert int(masks["a"].sum()) == 9


@pytest.mark.parametrize("name", ["rigl", "gmp", "granet"])
def test_a_score_has_one_value_for_each_weight(name):
    """One for each channel would be broadcast, and the counts would be wrong without a word."""
    params, grads = random_layers(0)
    rule = make_rule(
        name, density=0.3, end_step=900, drop=lambda key, mask, w, grad: jnp.abs(w).sum(0)[None]
    )
    masks = rule.init(jax.random.key(0), params)
    with pytest.raises(ValueError, match=r"a score of shape .* does not rank the weights"):
        rule.update(jax.random.key(1), jnp.int32(2), masks, params, grads)


def test_scores_may_be_infinite():
    """What a score says outside the mask does not count, -inf or not."""

    def masked_magnitude(key, mask, param, grad):
        return jnp.where(mask, jnp.abs(param), -jnp.inf)

    params, grads = jax.tree.map(jnp.asarray, random_layers(3))
    update = {}
    for name, drop in (("plain", "magnitude"), ("infinite", masked_magnitude)):
        rule = make_rule("gmp", density=0.2, end_step=10, update_every=2, drop=drop)
        masks = jax.tree.map(lambda m: m.ravel().at[0].set(False).reshape(m.shape),
                             rule.init(jax.random.key(0), params))  # fmt: skip
        update[name] = rule.update(jax.random.key(1), jnp.int32(6), masks, params, grads)
    jax.tree.map(np.testing.assert_array_equal, update["plain"], update["infinite"])
