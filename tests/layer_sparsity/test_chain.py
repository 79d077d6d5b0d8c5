"""Chains against a naive forward pass in NumPy; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    active_layers,
    apply_chain,
    compose,
    merge_layers,
)
from tests.layer_sparsity.chains import (
    forward,
    random_chain,
)


def test_apply_chain_agrees_with_numpy():
    rng = np.random.default_rng(4)
    dense = random_chain(rng, np.float32, (5, 7, 3))
    x = rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(apply_chain(dense, x), forward(dense, x), rtol=1e-5, atol=1e-6)
    convs = random_chain(rng, np.float32, (2, 4, 3), [(3, 2), (2, 3)])
    x = rng.normal(size=(4, 6, 7, 2)).astype(np.float32)
    np.testing.assert_allclose(apply_chain(convs, x), forward(convs, x), rtol=1e-5, atol=1e-5)


def test_compose_keeps_jax_arrays_and_types():
    first = Affine(jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3, jnp.bfloat16))
    second = Affine(jnp.ones((3, 4), jnp.bfloat16), jnp.zeros(4, jnp.bfloat16))
    merged = compose(first, second)
    assert isinstance(merged.kernel, jax.Array)
    assert merged.kernel.dtype == merged.bias.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.kernel, 3 * jnp.ones((2, 4), jnp.bfloat16))


def layer(*shape):
    return Affine(np.ones(shape), np.zeros(shape[-1]))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ((), "a chain is a sequence"),
        (layer(2, 2), "a chain is a sequence"),
        (({"kernel": 1},), "layer 0 of the chain is a dict and not an Affine"),
        ((Affine(np.ones(3), np.ones(3)),), r"the kernel of layer 0 has shape \(3,\)"),
        ((Affine(np.ones((2, 3)), np.ones(2)),), "the bias of layer 0 has shape"),
        ((layer(3, 3, 2, 4), layer(4, 2)), "a convolution and a dense layer, which do not merge"),
        ((layer(2, 3), layer(4, 2)), "layer 1 takes 4 inputs and layer 0 gives 3"),
        ((layer(2, 3), Affine(np.full((3, 1), np.nan), np.ones(1))), "layer 1 .* NaN or infinite"),
    ],
)
def test_bad_chains_are_refused_with_a_sentence(chain, message):
    for function in (merge_layers, active_layers):
        with pytest.raises(ValueError, match=message):
            function(chain)


def test_inputs_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"the input has shape \(4, 3\)"):
        apply_chain((layer(2, 3), layer(3, 1)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="need images of 5 x 3 or more"):
        apply_chain((layer(3, 1, 1, 1), layer(3, 3, 1, 1)), np.ones((1, 4, 9, 1)))
