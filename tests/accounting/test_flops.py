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


class Block(nn.Module):
    """A dense layer of the width that it finds, for scans."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(x.shape[-1], name="dense")(x), None


class Scanned(nn.Module):
    """Four blocks in one array, or one block applied four times, and a head."""

    shared: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        params = (
            {"variable_broadcast": "params"} if self.shared else {"variable_axes": {"params": 0}}
        )
        block = nn.remat(Block) if self.remat else Block
        blocks = nn.scan(block, split_rngs={"params": not self.shared}, length=4, **params)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(3, name="head")(x.mean(1))


@pytest.mark.parametrize("remat", [False, True])
def test_an_array_of_scanned_layers_has_the_positions_of_one(remat):
    x = jnp.zeros((2, 7, 5))  # 7 positions
    flops, total = flops_of(Scanned(remat=remat), x)
    assert flops == {"blocks/dense/kernel": 2 * 4 * 5 * 5 * 7, "head/kernel": 2 * 5 * 3}
    assert total.flops_dense == sum(flops.values())


def test_a_block_applied_in_each_step_of_a_scan_counts_each():
    flops, _ = flops_of(Scanned(shared=True), jnp.zeros((2, 7, 5)))
    assert flops == {"blocks/dense/kernel": 2 * 4 * 5 * 5 * 7, "head/kernel": 2 * 5 * 3}


class Experts(nn.Module):
    """Three dense layers in one array, all of which see the input."""

    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None,
            axis_size=3,
        )  # fmt: skip
        return dense(4, name="experts")(x)


def test_an_array_of_experts_has_the_positions_of_one():
    flops, _ = flops_of(Experts(), jnp.zeros((2, 7, 5)))
    assert flops == {"experts/kernel": 2 * 3 * 5 * 4 * 7}


class Made(nn.Module):
    """A kernel that is scaled, standardized and reshaped before it is used; a tied embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 6, name="embed")
        kernel = self.param("mix", nn.initializers.normal(), (6, 2, 3))
        scale = self.param("scale", nn.initializers.ones, (2, 3))
        centered = kernel - kernel.mean(0, keepdims=True)
        kernel = centered / (kernel.std(0, keepdims=True) + 1e-6) * scale[None]
        return embed.attend(embed(tokens) @ kernel.reshape(6, 6).T)


def test_kernels_made_from_parameters_and_tied_embeddings_count():
    flops, _ = flops_of(Made(), jnp.zeros((2, 5), jnp.int32))
    # Reading the embedding is no product; as the last layer it is one.
    assert flops == {"mix": 2 * 36 * 5, "embed/embedding": 2 * 66 * 5}


def test_a_transposed_convolution_has_the_positions_of_its_input():
    flops, _ = flops_of(nn.ConvTranspose(4, (3, 3), strides=(2, 2)), jnp.zeros((2, 5, 6, 2)))
    assert flops == {"kernel": 2 * (3 * 3 * 2 * 4) * 5 * 6}


class Choice(nn.Module):
    """One of two branches, the first of which applies a layer twice."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(5, name="dense")
        other = nn.Dense(5, name="other")
        return nn.cond(
            x.sum() > 0, lambda _, x: dense(dense(x)), lambda _, x: other(dense(x)), self, x
        )


def test_of_two_branches_that_with_most_products_counts():
    x = jnp.zeros((2, 5))
    assert kernel_positions(Choice(), init_shapes(Choice(), x), x) == {
        "dense/kernel": 2,
        "other/kernel": 1,
    }


class Until(nn.Module):
    """A kernel applied until the values are small."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (5, 5))
        return jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x @ kernel, x)


def test_the_body_of_a_while_loop_counts_once():
    x = jnp.zeros((2, 5))
    assert kernel_positions(Until(), init_shapes(Until(), x), x) == {"kernel": 1}


class Probe(nn.Module):
    """A learned query that is no function of the input, tiled for each example."""

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.normal(), (1, 1, 4))
        query = nn.Dense(6, name="query")(jnp.tile(probe, (len(x), 1, 1)))
        return query + nn.Dense(6, name="values")(x)


def test_a_layer_on_a_learned_query_counts_too():
    x = jnp.zeros((2, 3, 4))
    assert kernel_positions(Probe(), init_shapes(Probe(), x), x) == {
        "query/kernel": 1,
        "values/kernel": 3,
    }


@pytest.mark.parametrize(
    ("variables", "given"),
    [({"kernel": 1, "bias": 2}, "kernel, bias"), ({}, "dict"), (None, "NoneType")],
)
def test_parameters_in_place_of_variables_are_refused_with_a_sentence(variables, given):
    message = f"the variables have no 'params' but {given}: pass what module.init returns"
    with pytest.raises(ValueError, match=message):
        kernel_positions(nn.Dense(2), variables, jnp.zeros((1, 3)))
