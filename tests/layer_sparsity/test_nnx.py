"""Chains out of NNX models, and which models are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cka_sr_jax.layer_sparsity import (
    apply_chain,
    from_nnx,
    from_params,
    layer_penalty,
)
from tests.layer_sparsity.chains import (
    IMAGES,
    X,
    close,
)


def nnx_linear(*sizes):
    return nnx.Linear(*sizes, rngs=nnx.Rngs(0))


def test_an_nnx_chain():
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    norm.mean[...], norm.var[...] = jnp.linspace(-1, 1, 8), jnp.linspace(0.5, 2, 8)
    inner = nnx.Sequential(nnx.Linear(8, 5, use_bias=False, rngs=rngs), nnx.relu)
    model = nnx.Sequential(
        nnx.Linear(6, 8, rngs=rngs), norm, nnx.relu, inner, nnx.Dropout(0.0, rngs=rngs),
        nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs),
    )  # fmt: skip
    chain = from_nnx(model)
    assert len(chain) == 3
    close(apply_chain(chain, X), model(X))


def test_an_nnx_chain_of_convolutions():
    rngs = nnx.Rngs(0)
    parts = [
        nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs),
        nnx.relu,
        nnx.Conv(4, 2, (1, 1), use_bias=False, rngs=rngs),
    ]
    close(apply_chain(from_nnx(parts), IMAGES), parts[2](parts[1](parts[0](IMAGES))))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([nnx.tanh], "do not merge over tanh: tanh saturates"),
        ([lambda x: x + 1], "<lambda> is not known; use relu"),
        ([nnx.LayerNorm(6, rngs=nnx.Rngs(0))], "LayerNorm 1 cannot be part of a chain"),
        ([nnx.relu], "an activation follows the last layer"),
        ([nnx.relu, nnx.BatchNorm(6, rngs=nnx.Rngs(0))], "does not follow a layer directly"),
        ([nnx.relu, nnx.Linear(5, 2, rngs=nnx.Rngs(0))], "takes 5 inputs and layer 0 gives 6"),
    ],
)
def test_bad_nnx_parts_are_refused_with_a_sentence(parts, message):
    with pytest.raises(ValueError, match=message):
        from_nnx([nnx.Linear(6, 6, rngs=nnx.Rngs(0)), *parts])


class Residual(nnx.Sequential):
    def __call__(self, x):
        return x + super().__call__(x)


class Custom(nnx.Module):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "a NoneType is not an nnx.Sequential: pass one, or the list of its parts"),
        (nnx_linear(6, 6), "a Linear is not an nnx.Sequential"),
        (Custom(), "a Custom is not an nnx.Sequential"),
        (Residual(nnx_linear(6, 6)), "a Residual is not an nnx.Sequential.*from_linen"),
        ([nnx_linear(6, 6), nnx.relu, Residual(nnx_linear(6, 6))], "Residual 2 cannot be part"),
        ([nnx.LoRALinear(6, 6, lora_rank=2, rngs=nnx.Rngs(0))], "LoRALinear 0 cannot be part"),
        (
            [
                nnx.Conv(3, 4, (1, 1), rngs=nnx.Rngs(0)),
                nnx.BatchNorm(4, axis=1, rngs=nnx.Rngs(0)),
            ],
            "BatchNorm 1 has axis 1: only one over the last axis",
        ),
    ],
)
def test_nnx_models_that_are_no_sequence_of_plain_layers_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        from_nnx(model)


def test_the_penalty_of_an_nnx_model_is_a_loss_term():
    model = nnx.Sequential(
        nnx_linear(6, 5), nnx.relu, nnx.Linear(5, 4, use_bias=False, rngs=nnx.Rngs(1)), nnx.relu,
        nnx_linear(4, 2),
    )  # fmt: skip
    layers = ["layers/0", "layers/2", "layers/4"]
    for a, b in zip(from_params(nnx.state(model), layers), from_nnx(model), strict=True):
        np.testing.assert_array_equal(a.kernel, b.kernel)
        np.testing.assert_array_equal(a.bias, b.bias)
    penalty = nnx.grad(lambda m: layer_penalty(from_params(nnx.state(m), layers)))
    gradient = penalty(model)["layers"]
    assert np.any(gradient[2]["kernel"][...])
    assert not np.any(gradient[0]["kernel"][...])
    with pytest.raises(ValueError, match=r"from_nnx looks at the weights.*use from_params\(nnx.st"):
        nnx.grad(lambda m: layer_penalty(from_nnx(m)))(model)


def test_more_bad_nnx_parts_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="before the first layer"):
        from_nnx([nnx.relu])
    with pytest.raises(ValueError, match="strides 2"):
        from_nnx([nnx.Conv(3, 4, (1, 1), strides=2, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match="a chain is a sequence of one or more"):
        from_nnx([])
