"""Positions and FLOPs of small models, counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from cka_sr_jax.accounting import kernel_positions, layer_rows, total_row
from cka_sr_jax.models import create_model


class ConvDense(nn.Module):
    """3x3 "VALID" convolution 1 -> 4, stride 2, then a dense layer of 10."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2, padding="VALID", name="conv")(x)
        x = nn.BatchNorm(use_running_average=True, name="bn")(x)
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class Twice(nn.Module):
    """One layer called twice; setup style; a branch that only training takes."""

    def setup(self):
        self.layer = nn.Dense(5)
        self.auxiliary = nn.Dense(7)

    def __call__(self, x, train):
        y = self.layer(self.layer(x))
        return y + self.auxiliary(x).sum() if train else y


def init_shapes(module, x, **options):
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **options), x)


def flops_of(module, x, **options):
    variables = init_shapes(module, x, **options)
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), variables["params"])
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    rows = layer_rows(params, masks, kernel_positions(module, variables, x))
    return {row.path: row.flops_dense for row in rows if row.flops_dense}, total_row(rows)


@pytest.mark.parametrize("batch", [1, 3])
def test_flops_of_a_convolution_and_a_dense_layer(batch):
    flops, total = flops_of(ConvDense(), jnp.zeros((batch, 9, 9, 1)))
    # (9 - 3) // 2 + 1 = 4 output rows and columns.
    conv, head = 2 * (3 * 3 * 1 * 4) * 4 * 4, 2 * (4 * 4 * 4) * 10
    assert flops == {"conv/kernel": conv, "head/kernel": head}
    assert total.flops_dense == total.flops == conv + head


def test_a_layer_called_twice_counts_twice_and_training_branches_do_not():
    x = jnp.zeros((2, 5))
    positions = kernel_positions(Twice(), init_shapes(Twice(), x, train=True), x)
    assert positions == {"layer/kernel": 2}


def test_a_root_layer_a_grouped_convolution_and_a_sequence():
    x = jnp.zeros((2, 8, 8, 6))
    conv = nn.Conv(6, (3, 3), feature_group_count=3)
    # Each output channel sees 2 of the 6 input channels: the kernel is [3, 3, 2, 6].
    assert kernel_positions(conv, init_shapes(conv, x), x) == {"kernel": 64}
    dense = nn.Dense(3)
    assert kernel_positions(dense, init_shapes(dense, x), x) == {"kernel": 64}
    general = nn.DenseGeneral((2, 3))
    assert kernel_positions(general, init_shapes(general, x), x) == {"kernel": 64}


def test_strides_and_shortcuts_of_a_resnet():
    model = create_model("resnet8", 10)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = init_shapes(model, x, train=False)
    positions = kernel_positions(model, variables, x)
    expected = {
        "stem/kernel": 32 * 32,
        "stage1_block0/conv1/kernel": 32 * 32,
        "stage1_block0/conv2/kernel": 32 * 32,
        "stage2_block0/conv1/kernel": 16 * 16,
        "stage2_block0/conv2/kernel": 16 * 16,
        "stage2_block0/shortcut_conv/kernel": 16 * 16,
        "stage3_block0/conv1/kernel": 8 * 8,
        "stage3_block0/conv2/kernel": 8 * 8,
        "stage3_block0/shortcut_conv/kernel": 8 * 8,
        "head/kernel": 1,
    }
    assert list(positions.items()) == list(expected.items())  # as the model applies them


def test_a_second_call_sees_the_same():
    x = jnp.zeros((1, 9, 9, 1))
    module = ConvDense()
    variables = init_shapes(module, x)
    first = kernel_positions(module, variables, x)
    assert first == kernel_positions(module, variables, x) == {"conv/kernel": 16, "head/kernel": 1}


@pytest.mark.parametrize(
    ("variables", "given"),
    [({"kernel": 1, "bias": 2}, "kernel, bias"), ({}, "dict"), (None, "NoneType")],
)
def test_parameters_in_place_of_variables_are_refused_with_a_sentence(variables, given):
    message = f"the variables have no 'params' but {given}: pass what module.init returns"
    with pytest.raises(ValueError, match=message):
        kernel_positions(nn.Dense(2), variables, jnp.zeros((1, 3)))
