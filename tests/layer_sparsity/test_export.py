"""Chains as files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    from_mlp,
    load_mlp,
    merge_layers,
    save_mlp,
)
from cka_sr_jax.models import MLP
from tests.layer_sparsity.chains import random_jax_chain


def test_a_saved_chain_is_a_plain_mlp(tmp_path):
    chain = random_jax_chain(0, (5, 7, 6, 6, 3))
    chain = (chain[0], *(Affine(*map(jnp.abs, layer)) for layer in chain[1:3]), chain[3])
    merged = merge_layers(chain)
    assert len(merged) == 2
    save_mlp(tmp_path / "merged.npz", merged)
    inputs = jax.random.normal(jax.random.key(0), (20, 5))
    hidden, params = load_mlp(tmp_path / "merged.npz")
    assert hidden == (7,)
    outputs = MLP(3, hidden).apply({"params": params}, inputs, train=False)
    np.testing.assert_array_equal(outputs, apply_chain(merged, inputs))
    np.testing.assert_allclose(outputs, apply_chain(chain, inputs), rtol=1e-3, atol=1e-3)
    for layer, loaded in zip(merged, from_mlp(params), strict=True):
        np.testing.assert_array_equal(layer.kernel, loaded.kernel)
    save_mlp(tmp_path / "plain", jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), merged))
    _, params = load_mlp(tmp_path / "plain")
    expected = jnp.asarray(merged[0].kernel, jnp.bfloat16)
    np.testing.assert_array_equal(params["hidden0"]["kernel"], np.asarray(expected, np.float32))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk.npz is not an .npz archive"):
        load_mlp(tmp_path / "junk.npz")
    with pytest.raises(FileNotFoundError):
        load_mlp(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="not the parameters of an MLP"):
        load_mlp(tmp_path / "other.npz")
