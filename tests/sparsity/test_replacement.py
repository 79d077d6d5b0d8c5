"""The update of the rules that replace weights."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.sparsity import leaf_paths, make_rule
from tests.sparsity.naive import masks_of, random_layers


@given(st.sampled_from(["rigl", "mest"]), st.floats(-3, 3))
@settings(max_examples=3)  # each compiles
@pytest.mark.slow
def test_a_drop_fraction_of_the_users_own_may_be_anything(name, value):
    params, grads = random_layers(1)
    options = {"soft": True} if name == "mest" else {}
    rule = make_rule(name, density=0.3, end_step=900, drop_fraction=lambda step: value, **options)
    masks = rule.init(jax.random.key(0), params)
    after = masks_of(rule.update(jax.random.key(1), jnp.int32(4), masks, params, grads))
    counts = dict(leaf_paths(after))
    for path, mask in leaf_paths(masks):
        if name == "rigl":
            assert counts[path].sum() == mask.sum()
        assert 0 < counts[path].sum() <= mask.size
