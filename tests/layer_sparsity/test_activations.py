"""Which activations layers merge over."""

from functools import partial

import flax.linen as nn
import pytest

from cka_sr_jax.layer_sparsity import (
    check_activation,
)

NAMES = ("leaky_relu", "tanh", "sigmoid", "gelu", "softplus", "relu6", "elu", "silu")


def test_which_activations_allow_merging():
    assert check_activation(nn.relu) == check_activation("relu") == "relu"
    assert check_activation(None) == check_activation("linear") == "linear"
    for name in (*NAMES, "celu", "selu", "hard_tanh", "swish"):
        with pytest.raises(ValueError, match=f"layers do not merge over {name}: "):
            check_activation(name)
    with pytest.raises(ValueError, match="do not merge over leaky_relu: leaky_relu is linear on"):
        check_activation(partial(nn.leaky_relu, negative_slope=0.1))
