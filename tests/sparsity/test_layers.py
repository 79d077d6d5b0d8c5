"""What a layer is: which parameters are pruned, and which axes count what."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cka_sr_jax.sparsity import layers_of, leaf_paths, rst


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, jnp.float32)


def described(params, **options):
    return {path: str(layer) for path, layer in layers_of(params, **options).items()}


class Block(nn.Module):
    """A transformer's block, as Flax writes it."""

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        return x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(x))), None


class Transformer(nn.Module):
    """Embeddings, positions and blocks, in a loop or scanned."""

    scan: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        x = x + self.param("pos", nn.initializers.normal(0.02), (1, tokens.shape[1], 8))
        if self.scan:
            blocks = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = blocks(name="blocks")(x, None)
        else:
            for i in range(3):
                x, _ = Block(name=f"block{i}")(x)
        return nn.Dense(11, name="head")(nn.LayerNorm()(x))


def transformer(scan=False):
    tokens = jnp.zeros((2, 5), jnp.int32)
    return jax.eval_shape(Transformer(scan).init, jax.random.key(0), tokens)["params"]


def test_a_transformer_prunes_its_kernels_alone():
    found = layers_of(transformer())
    assert len(found) == 3 * 6 + 1
    assert all(path.endswith("/kernel") for path in found)
    block = {path: layer.dims for path, layer in found.items() if path.startswith("block0")}
    assert block == {
        "block0/attention/key/kernel": (8, 8),
        "block0/attention/out/kernel": (8, 8),
        "block0/attention/query/kernel": (8, 8),
        "block0/attention/value/kernel": (8, 8),
        "block0/down/kernel": (16, 8),
        "block0/up/kernel": (8, 16),
    }
    assert found["block0/attention/query/kernel"].inputs == (0,)
    assert found["block0/attention/out/kernel"].inputs == (0, 1)


def test_a_scan_is_a_stack_of_the_loops_layers():
    loop, scan = layers_of(transformer()), layers_of(transformer(True), stacked={"blocks": 1})
    for path, layer in scan.items():
        same = loop[path.replace("blocks", "block0")]
        assert (layer.dims, layer.size, layer.inputs) == (same.dims, same.size, same.inputs)
        assert layer.number == (3 if path.startswith("blocks") else 1)


def test_a_scan_that_is_not_declared_is_refused():
    with pytest.raises(ValueError, match=r"looks like 3 layers.*stacked=\{'blocks': 1\}"):
        layers_of(transformer(True))
    bare = {"k": shape(8, 64, 256), "bias": shape(8, 256), "scale": shape(8, 64)}
    with pytest.raises(ValueError, match=r"k of shape \(8, 64, 256\) looks like 8 layers"):
        rst(0.1).init(jax.random.key(0), bare)


EXPERTS = {
    "blocks": {
        "dense": {"kernel": shape(2, 8, 16), "bias": shape(2, 16)},
        "experts": {"kernel": shape(2, 3, 8, 16), "bias": shape(2, 3, 16)},
    }
}


@pytest.mark.parametrize("stacked", [{"blocks": 1, "experts": 2}, {"experts": 2, "blocks": 1}])
def test_a_stack_in_a_stack_has_the_larger_of_its_numbers(stacked):
    assert described(EXPERTS, stacked=stacked) == {
        "blocks/dense/kernel": "2 layers: matrix 8 x 16",
        "blocks/experts/kernel": "6 layers: matrix 8 x 16",
    }


@pytest.mark.parametrize(
    ("params", "stacked", "cure"),
    [
        (EXPERTS, {"blocks": 1}, r"stacked=\{'blocks': 2\}"),
        (
            {"b": {"query": {"kernel": shape(4, 2, 8, 2, 4)}}}, {"b": 1}, r"stacked=\{'\*': 2\}",
        ),
        # Haiku's layer_stack, weights with numbers, and a norm that calls its scale a weight.
        (
            {"stack": {"w": shape(4, 8, 16), "b": shape(4, 16)}, "head": {"w": shape(16, 5)}},
            {}, r"stacked=\{'stack': 1\}",
        ),
        ({"w1": shape(4, 8, 16), "b1": shape(4, 16)}, {}, r"stacked=\{'\*': 1\}"),
        (
            {"layers": {"norm": {"weight": shape(4, 16)}, "lin": {"weight": shape(4, 16, 24)}}},
            {}, r"stacked=\{'\*': 1\}",
        ),
        # A block vmapped at the root, of which a part is declared.
        (
            {
                "attn": {"kernel": shape(3, 4, 8), "bias": shape(3, 8)},
                "norm": {"scale": shape(3, 8)}, "lin": {"kernel": shape(3, 8, 8)},
            },
            {"attn": 1}, r"stacked=\{'\*': 1\}",
        ),
    ],
)  # fmt: skip
def test_a_stack_that_is_declared_too_small_or_not_at_all_is_refused(params, stacked, cure):
    with pytest.raises(ValueError, match=cure):
        layers_of(params, stacked=stacked)


def test_a_stack_prunes_neither_its_biases_nor_its_norms():
    params = {"k": jnp.ones((8, 6, 5)), "bias": jnp.ones((8, 5)), "scale": jnp.ones((8, 6))}
    masks = rst(0.1, "uniform", stacked={"*": 1}).init(jax.random.key(0), params)
    assert dict(leaf_paths(masks)).keys() == {"k"}
    assert masks["k"].sum(axis=(1, 2)).tolist() == [3] * 8


class Linear(NamedTuple):
    """As Equinox keeps its weights: outputs first, as attributes."""

    weight: jax.Array
    bias: jax.Array


class Cell(NamedTuple):
    """As Equinox's recurrent cells keep theirs."""

    weight_ih: jax.Array


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"w": shape(3, 4), "b": shape(4)}, {"w": "matrix 3 x 4"}),
        ({"a": shape(3, 4), "b": shape(4, 2)}, {"a": "matrix 3 x 4", "b": "matrix 4 x 2"}),
        (
            {"conv": {"kernel": shape(3, 3, 2, 4)}, "embed": {"embedding": shape(9, 2)}},
            {"conv/kernel": "convolution 3 x 3, 2 to 4 channels"},
        ),
        (
            {"proj": {"kernel": shape(5, 2, 3), "bias": shape(2, 3)}},
            {"proj/kernel": "matrix 5 x 6"},
        ),
        (
            {"token_embedding": {"weight": shape(9, 2)}, "fc": {"weight": shape(2, 3)}},
            {"fc/weight": "matrix 2 x 3"},
        ),
        (
            {"norm": {"weight": shape(4)}, "fc": {"weight": shape(4, 3)}},
            {"fc/weight": "matrix 4 x 3"},
        ),
        ({"fc": Linear(shape(7, 4), shape(7))}, {"fc/weight": "matrix 4 x 7"}),
        (
            {"conv": Linear(shape(7, 4, 3, 3), shape(7))},
            {"conv/weight": "convolution 3 x 3, 4 to 7 channels"},
        ),
        (
            {"conv": Linear(shape(8, 8, 1, 1), shape(8, 1, 1))},
            {"conv/weight": "convolution 1 x 1, 8 to 8 channels"},
        ),
        (
            {"conv": Linear(shape(8, 4, 3), shape(8, 1))},
            {"conv/weight": "convolution 3, 4 to 8 channels"},
        ),
        ({"att": {"query": {"kernel": shape(16, 2, 8)}}}, {"att/query/kernel": "matrix 16 x 16"}),
        (
            {"a": {"kernel": shape(0, 3)}, "b": {"kernel": shape(4, 3)}},
            {"b/kernel": "matrix 4 x 3"},
        ),
        ({"rnn": Cell(shape(15, 8))}, {"rnn/weight_ih": "matrix 8 x 15"}),
        ({"rnn": {"weight_hh": shape(4, 8)}}, {"rnn/weight_hh": "matrix 4 x 8"}),
        (
            {"pos_embed": shape(1, 5, 4), "cls_token": shape(1, 1, 4), "u": shape(4, 3)},
            {"u": "matrix 4 x 3"},
        ),
        ({"value": {"kernel": shape(4, 3)}}, {"value/kernel": "matrix 4 x 3"}),
        (
            {
                "wte": {"weight": shape(9, 4)},
                "wpe": {"weight": shape(5, 4)},
                "pos": {"w": shape(5, 4)},
                "relative_attention_bias": {"weight": shape(5, 2)},
                "fc": {"w": shape(4, 3), "weight_scale": shape(4, 3), "kernel_scale": shape(4, 3)},
                "token_mixing": {"weight": shape(4, 3)},
            },
            {"fc/w": "matrix 4 x 3", "token_mixing/weight": "matrix 4 x 3"},
        ),
    ],
)
def test_weights_are_known_by_name_and_axes(params, expected):
    assert described(params) == expected


def test_nnx_attention_and_vmapped_experts():
    rngs = nnx.Rngs(0)
    attention = nnx.MultiHeadAttention(
        num_heads=2, in_features=8, qkv_features=8, decode=False, rngs=rngs
    )
    found = layers_of(nnx.state(attention, nnx.Param))
    assert {path: layer.dims for path, layer in found.items()} == {
        f"{name}/kernel": (8, 8) for name in ("key", "out", "query", "value")
    }

    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=0, out_axes=0)
    def experts(rngs):
        return nnx.Linear(6, 5, rngs=rngs)

    state = nnx.state(experts(rngs), nnx.Param)
    assert described(state, stacked={"*": 1}) == {"kernel": "4 layers: matrix 6 x 5"}
    with pytest.raises(ValueError, match=r"kernel of shape \(4, 6, 5\) looks like 4 layers"):
        layers_of(state)


def test_an_nnx_parameter_called_weight_has_its_inputs_first():
    class Layer(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((4, 7)))

    for params in (Layer(), nnx.state(Layer(), nnx.Param)):
        assert described(params) == {"weight": "matrix 4 x 7"}


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"include": "mlp"}, ["mlp/kernel"]),
        ({"include": ("mlp", "embedding")}, ["embed/embedding", "mlp/kernel"]),
        ({"include": "*", "exclude": "head"}, ["mlp/kernel"]),
        ({"include": "mlp/bias"}, ["mlp/bias"]),
        ({"exclude": "/head/kernel"}, ["mlp/kernel"]),
    ],
)
def test_include_selects_and_exclude_leaves_out(options, paths):
    params = {
        "embed": {"embedding": shape(9, 4)},
        "mlp": {"kernel": shape(4, 4), "bias": shape(2, 2)},
        "head": {"kernel": shape(4, 3), "bias": shape(3)},
    }
    assert list(layers_of(params, **options)) == paths


def test_input_axes_are_declared_by_pattern():
    params = {"proj": {"kernel": shape(2, 3, 4)}}
    assert described(params) == {"proj/kernel": "convolution 2, 3 to 4 channels"}
    assert described(params, input_axes={"proj": 2}) == {"proj/kernel": "matrix 6 x 4"}
    stacked = described(params, stacked={"proj": 1}, input_axes={"proj": 1})
    assert stacked == {"proj/kernel": "2 layers: matrix 3 x 4"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "mpl"}, "include pattern 'mpl' matches no parameter"),
        ({"exclude": "mpl"}, "exclude pattern 'mpl' matches no parameter"),
        ({"stacked": {"mpl": 1}}, "stacked pattern 'mpl' matches no parameter"),
        ({"input_axes": {"mpl": 1}}, "input_axes pattern 'mpl' matches no parameter"),
        ({"stacked": {"kernel": 3}}, r"stacked=\{'kernel': 3\} does not fit mlp/kernel"),
        ({"stacked": {"kernel": 0}}, "is not a number of axes: pass 1 or more"),
        ({"stacked": {"kernel": True}}, "is not a number of axes: pass 1 or more"),
        ({"stacked": {"kernel": 1}}, "no parameter is left to prune"),
        ({"input_axes": {"kernel": 2}}, "leaves no output axis"),
        ({"exclude": "*"}, "no parameter is left to prune"),
        ({"stacked": "kernel"}, r"stacked='kernel' is not a mapping.*stacked=\{'blocks': 1\}"),
        ({"input_axes": 2}, "input_axes=2 is not a mapping from path patterns"),
        ({"exclude": None}, "exclude=None is neither a path pattern nor a tuple of them"),
        ({"include": ("mlp", 3)}, r"include=\('mlp', 3\) is neither a path pattern"),
    ],
)
def test_what_cannot_be_right_is_refused(options, message):
    params = {"mlp": {"kernel": shape(4, 4), "bias": shape(4)}}
    with pytest.raises(ValueError, match=message) as error:
        layers_of(params, **options)
    assert "\n" not in str(error.value)


def test_a_parameter_called_value_is_excluded_by_its_path():
    params = {"value": np.ones((3, 3)), "other": {"value": np.ones((3, 3))}}
    assert list(layers_of(params)) == ["other/value", "value"]
    assert list(layers_of(params, exclude="/value")) == ["other/value"]
    assert list(layers_of(params, exclude="other/value")) == ["value"]


def test_norms_of_a_declared_stack_do_not_make_a_convolution_suspicious():
    blocks = {"norm": {"scale": shape(3, 16)}, "dense": {"kernel": shape(3, 16, 16)}}
    params = {"enc": {"stem": {"kernel": shape(3, 3, 3, 16)}, "blocks": blocks}}
    assert described(params, stacked={"enc/blocks": 1}) == {
        "enc/stem/kernel": "convolution 3 x 3, 3 to 16 channels",
        "enc/blocks/dense/kernel": "3 layers: matrix 16 x 16",
    }


def test_two_parameters_of_one_path_are_refused():
    params = {"a/b": {"w": shape(4, 3)}, "a": {"b": {"w": shape(4, 3)}}}
    with pytest.raises(ValueError, match="two parameters have the path a/b/w"):
        layers_of(params)
