"""BatchNorm folded into the layer before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    fold_batch_norm,
)


def test_batch_norm_folds_into_the_layer_before():
    rng = np.random.default_rng(0)
    layer = Affine(rng.normal(size=(6, 4)), rng.normal(size=4))
    scale, bias, mean = rng.normal(size=(3, 4))
    var = rng.uniform(0.1, 2, size=4)
    x = rng.normal(size=(5, 6))
    y = x @ layer.kernel + layer.bias
    expected = (y - mean) / np.sqrt(var + 1e-3) * scale + bias
    folded = fold_batch_norm(layer, scale, bias, mean, var, eps=1e-3)
    np.testing.assert_allclose(x @ folded.kernel + folded.bias, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fold_batch_norm(layer, scale, bias, mean, var * np.nan)
    with pytest.raises(ValueError, match=r"mean has shape \(3,\) and the layer 4 outputs: pass"):
        fold_batch_norm(layer, scale, bias, mean[:3], var)


def test_folding_needs_values_and_says_so_inside_jit():
    layer = Affine(jnp.ones((2, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match="fold_batch_norm looks at the weights' values, which jit"):
        jax.jit(fold_batch_norm)(layer, 1.0, 0.0, 0.0, 1.0)
