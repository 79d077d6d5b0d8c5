"""Kernels as BCOO matrices: products equal the dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.experimental.sparse import BCOO

from cka_sr_jax.export import to_bcoo
from cka_sr_jax.sparsity import apply_masks, layers_of, leaf_paths, masks_from_paths
from tests.export.models import logits, sparse_model


def pruned(params):
    """(params, masks) with a fifth of the kernels' weights."""
    rng, leaves = np.random.default_rng(0), dict(leaf_paths(params))
    masks = {path: rng.random(leaves[path].shape) < 0.2 for path in layers_of(params)}
    masks = masks_from_paths(params, masks)
    return apply_masks(params, masks), masks


def test_an_mlp_applied_by_it_gives_the_dense_outputs():
    model, variables, masks, images = sparse_model("mlp", 0.1, (6, 6, 1), hidden=(20, 15))
    sparse = to_bcoo(variables["params"], masks)

    @jax.jit
    def apply(params, x):
        x = x.reshape(x.shape[0], -1)
        for name in ("hidden0", "hidden1"):
            x = nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x @ params["head"]["kernel"] + params["head"]["bias"][None]

    expected = logits(model, variables, images)
    np.testing.assert_allclose(apply(sparse, images), expected, rtol=1e-6, atol=1e-6)
    for name, layer in sparse.items():
        assert isinstance(layer["kernel"], BCOO)
        assert layer["kernel"].nse == masks[name]["kernel"].sum()
        assert layer["bias"] is variables["params"][name]["bias"]


def test_a_convolution_is_a_matrix_that_multiplies_patches():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    layer = nn.Conv(5, (3, 3), padding="VALID", use_bias=False)
    params, masks = pruned(layer.init(jax.random.key(1), x)["params"])
    kernel = to_bcoo(params, masks)["kernel"]
    assert kernel.shape == (27, 5)
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))  # [b, h, w, c, 3, 3]
    patches = jnp.asarray(np.moveaxis(patches, 3, 5).reshape(-1, 27))
    expected = layer.apply({"params": params}, x)
    np.testing.assert_allclose((patches @ kernel).reshape(expected.shape), expected, atol=1e-5)


def test_attentions_heads_count_as_one_axis():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = nn.MultiHeadDotProductAttention(num_heads=2)
    params, masks = pruned(layer.init(jax.random.key(1), x)["params"])
    sparse = to_bcoo(params, masks)
    for name, kernel in params.items():
        dense = kernel["kernel"].reshape(8, 8)  # both ways round, as 2 x 4 = 8
        np.testing.assert_array_equal(sparse[name]["kernel"].todense(), dense)


def test_an_unusual_kernel_by_input_axes():
    params = {"kernel": jnp.arange(24.0).reshape(2, 3, 4)}
    masks = {"kernel": params["kernel"] != 0}
    assert to_bcoo(params, masks, input_axes={"kernel": 1})["kernel"].shape == (2, 12)
    assert to_bcoo(params, masks)["kernel"].shape == (6, 4)


def test_kept_weights_that_are_0_are_stored_and_types_stay():
    masks = {"kernel": np.eye(3, dtype=bool)}
    matrix = to_bcoo({"kernel": jnp.zeros((3, 3), jnp.bfloat16)}, masks)["kernel"]
    assert (matrix.nse, matrix.dtype, matrix.indices.dtype) == (3, jnp.bfloat16, np.int32)


def test_what_one_matrix_cannot_hold_is_refused():
    stack = {"scan": {"kernel": jnp.zeros((4, 3, 2)), "bias": jnp.zeros((4, 2))}}
    masks = {"scan": {"kernel": np.zeros((4, 3, 2), bool), "bias": optax.MaskedNode()}}
    with pytest.raises(ValueError, match="looks like 4 layers in one array"):
        to_bcoo(stack, masks)
    with pytest.raises(ValueError, match="another structure"):
        to_bcoo(stack, {"scan": {}})
    with pytest.raises(ValueError, match="6 weights of kernel that the masks do not keep"):
        to_bcoo({"kernel": jnp.ones((3, 2))}, {"kernel": np.zeros((3, 2), bool)})
