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


class Tied(nn.Module):
    """A dense layer between an embedding and the same embedding as the last layer."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 6, name="embed")
        return embed.attend(nn.Dense(6, name="dense")(embed(tokens)))


def test_a_tied_embedding_counts_as_the_last_layer_and_not_where_it_is_read():
    flops, _ = flops_of(Tied(), jnp.zeros((2, 5), jnp.int32))
    assert flops == {"dense/kernel": 2 * 36 * 5, "embed/embedding": 2 * 66 * 5}


def test_a_transposed_convolution_has_the_positions_of_its_input():
    flops, _ = flops_of(nn.ConvTranspose(4, (3, 3), strides=(2, 2)), jnp.zeros((2, 5, 6, 2)))
    assert flops == {"kernel": 2 * (3 * 3 * 2 * 4) * 5 * 6}


class Choice(nn.Module):
    """One of two branches, the second of which applies three layers and the first two."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(5, name="dense")
        other = nn.Dense(5, name="other")
        return nn.cond(
            x.sum() > 0,
            lambda _, x: other(other(x)),
            lambda _, x: other(dense(dense(x))),
            self,
            x,
        )


def test_of_two_branches_that_with_most_products_counts():
    x = jnp.zeros((2, 5))
    assert kernel_positions(Choice(), init_shapes(Choice(), x), x) == {
        "dense/kernel": 2,
        "other/kernel": 1,
    }


class Routed(nn.Module):
    """One of three experts for the whole batch."""

    @nn.compact
    def __call__(self, x):
        experts = [nn.Dense(5, name=f"expert{i}") for i in range(3)]
        if self.is_initializing():
            return sum(expert(x) for expert in experts)
        return nn.switch(x.argmax() % 3, [lambda _, x, e=e: e(x) for e in experts], self, x)


def test_of_routed_experts_one_counts():
    x = jnp.zeros((2, 5))
    (count,) = kernel_positions(Routed(), init_shapes(Routed(), x), x).values()
    assert count == 1


class Packed(nn.Module):
    """A layer whose kernel is stored as a vector."""

    @nn.compact
    def __call__(self, x):
        def unpacked(tree):
            packed = tree["params"].get("packed")
            return tree if packed is None else {"params": {"kernel": packed.reshape(5, 4)}}

        def packed(tree):
            kernel = tree.get("params", {}).get("kernel")
            return tree if kernel is None else {"params": {"packed": kernel.ravel()}}

        dense = nn.map_variables(nn.Dense, "params", unpacked, packed, init=True)
        return nn.Dense(3, name="head")(dense(4, use_bias=False, name="packed")(x))


def test_kernels_that_are_made_of_parameters_do_not_count():
    x = jnp.zeros((2, 5))
    assert kernel_positions(Packed(), init_shapes(Packed(), x), x) == {"head/kernel": 1}


class Until(nn.Module):
    """A layer applied until the values are small."""

    @nn.compact
    def __call__(self, x):
        return nn.while_loop(
            lambda _, x: x.max() > 1, lambda dense, x: dense(x), nn.Dense(5, name="dense"), x
        )


def test_the_body_of_a_while_loop_counts_once():
    dense = nn.Dense(5)
    x = jnp.zeros((2, 5))
    variables = {"params": {"dense": init_shapes(dense, x)["params"]}}
    assert kernel_positions(Until(), variables, x) == {"dense/kernel": 1}


class Probe(nn.Module):
    """Attention of three learned queries to the input, and no attention of the input to itself."""

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.normal(), (1, 3, 8))
        probe = jnp.tile(probe, (len(x), 1, 1))
        return nn.MultiHeadDotProductAttention(2, name="attention")(probe, x)


@pytest.mark.parametrize("batch", [1, 4])
def test_attention_of_learned_queries(batch):
    x = jnp.zeros((batch, 7, 8))
    positions = kernel_positions(Probe(), init_shapes(Probe(), x), x)
    expected = {"query": 3, "key": 7, "value": 7, "out": 3}
    assert positions == {f"attention/{name}/kernel": n for name, n in expected.items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_wrapped_layer_counts_what_it_applies_to_the_input(batch):
    x = jnp.zeros((batch, 8))

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(8, name="dense"))(x, update_stats=False)

    variables = init_shapes(Normed(), x)
    (count,) = kernel_positions(Normed(), variables, x).values()
    assert count == 1


def test_kernels_with_a_sharding():
    init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    dense = nn.Dense(4, kernel_init=init, name="dense")
    x = jnp.zeros((2, 7, 3))
    assert kernel_positions(dense, init_shapes(dense, x), x) == {"kernel/value": 7}


@pytest.mark.parametrize(
    ("variables", "given"),
    [({"kernel": 1, "bias": 2}, "kernel, bias"), ({}, "dict"), (None, "NoneType")],
)
def test_parameters_in_place_of_variables_are_refused_with_a_sentence(variables, given):
    message = f"the variables have no 'params' but {given}: pass what module.init returns"
    with pytest.raises(ValueError, match=message):
        kernel_positions(nn.Dense(2), variables, jnp.zeros((1, 3)))
