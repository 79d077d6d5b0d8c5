"""Chains from models and back, and what is refused."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    check_activation,
    fold_batch_norm,
    from_linen,
    from_mlp,
    from_nnx,
    from_params,
    layer_penalty,
    merge_layers,
    to_mlp_params,
)
from cka_sr_jax.models import MLP

X = jax.random.normal(jax.random.key(1), (5, 6))
IMAGES = jax.random.normal(jax.random.key(2), (2, 7, 7, 3))


def randomized(variables):
    """Every parameter and statistic moved away from its 0 or 1."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0.2, 1, x.shape), x.dtype), variables)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.max(jnp.abs(b))))


# MLP.


def test_an_mlp_goes_to_a_chain_is_merged_and_comes_back():
    model = MLP(num_classes=4, hidden=(8,) * 11)  # hidden10 sorts before hidden2
    params = model.init(jax.random.key(0), X, train=False)["params"]
    params["hidden3"] = jax.tree.map(jnp.abs, params["hidden3"])
    params["hidden10"] = jax.tree.map(jnp.abs, params["hidden10"])
    logits = model.apply({"params": params}, X, train=False)
    chain = from_mlp(dict(sorted(params.items())))
    close(apply_chain(chain, X), logits)

    merged = merge_layers(chain)
    hidden, merged_params = to_mlp_params(merged)
    assert len(hidden) == 9
    small = MLP(num_classes=4, hidden=hidden)
    close(small.apply({"params": merged_params}, X, train=False), logits)
    shapes = jax.eval_shape(lambda: small.init(jax.random.key(0), X, train=False))["params"]
    assert jax.tree.map(jnp.shape, merged_params) == jax.tree.map(jnp.shape, shapes)


def test_the_penalty_of_parameters_is_a_loss_term():
    params = MLP(3, (4, 5)).init(jax.random.key(0), X, train=False)["params"]
    gradient = jax.jit(jax.grad(lambda p: layer_penalty(from_mlp(p))))(params)
    assert np.any(gradient["hidden1"]["kernel"])
    assert not np.any(gradient["hidden0"]["kernel"])


def test_other_parameters_are_refused_with_a_sentence():
    params = MLP(3, (4, 5)).init(jax.random.key(0), X, train=False)
    with pytest.raises(ValueError, match=r"not the parameters of an MLP.*but params: pass var"):
        from_mlp(params)
    with pytest.raises(ValueError, match="no layer 'hidden9' with a kernel: they have"):
        from_params(params["params"], ["hidden0", "hidden9"])
    with pytest.raises(ValueError, match="layer 1 takes 5 inputs and layer 0 gives 4"):
        from_params(params["params"], ["hidden0", "head"])
    with pytest.raises(ValueError, match="this is a chain of convolutions"):
        to_mlp_params([Affine(np.ones((1, 1, 2, 3)), np.ones(3))])


# Linen.


class Dense(nn.Module):
    """Dense layers named against their order, with BatchNorm, no bias, dropout and two linear."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="z")(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(7, use_bias=False, name="b")(x))
        x = nn.Dense(5, name="c")(x)
        return nn.Dense(3, name="a")(x)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID")(x))
        x = nn.Conv(5, (1, 1), use_bias=False)(x)  # SAME, which a 1x1 doesn't notice
        x = nn.relu(nn.BatchNorm(use_running_average=True, use_scale=False)(x))
        return nn.Conv(2, (2, 2), padding=0, strides=1)(x)


@pytest.mark.parametrize(("model", "x", "depth"), [(Dense(), X, 3), (Convolutions(), IMAGES, 3)])
def test_a_linen_chain_is_found_in_the_order_of_execution(model, x, depth):
    variables = randomized(jax.jit(model.init)(jax.random.key(0), x))
    chain = from_linen(model, variables, x)
    assert len(chain) == depth
    close(jax.jit(apply_chain)(chain, x), model.apply(variables, x))


def test_the_projects_mlp_is_a_linen_chain():
    model = MLP(3, (4, 5))
    variables = model.init(jax.random.key(0), X, train=False)
    found = from_linen(model, variables, X, train=False)
    for a, b in zip(found, from_mlp(variables["params"]), strict=True):
        np.testing.assert_array_equal(a.kernel, b.kernel)


def between(function):
    """Two equally wide dense layers with this between them."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = nn.Dense(6, name="first")(x)
            return nn.Dense(6, name="second")(function(x, first))

    return Model()


def convolution(**options):
    return nn.Sequential([nn.Conv(4, (3, 3), **{"padding": "VALID", **options})])


NAMES = ("leaky_relu", "tanh", "sigmoid", "gelu", "softplus", "relu6", "elu", "silu")
REFUSED_LINEN = [
    *(
        (between(lambda x, y, name=name: getattr(nn, name)(y)), X, f"do not merge over {name}: ")
        for name in NAMES
    ),
    (between(lambda x, y: x + nn.relu(y)), X, "residual connection ends between first and second"),
    (between(lambda x, y: nn.relu(x + y)), X, "residual connection ends"),
    (between(lambda x, y: x), X, "second is not applied to the ReLU of the output of first"),
    (between(lambda x, y: nn.LayerNorm()(nn.relu(y))), X, "second is not applied to the ReLU"),
    (between(lambda x, y: jnp.sin(y)), X, "the model is no chain"),
    (between(lambda x, y: jnp.clip(y, 0, 100)), X, "the model is no chain"),
    (between(lambda x, y: nn.BatchNorm(True)(nn.relu(y))), X, "does not follow a layer directly"),
    (nn.Sequential([nn.Dense(3), nn.relu]), X, "is not that of its last layer, layers_0"),
    (nn.Sequential([nn.relu, nn.Dense(3)]), abs(X), "not applied to the model's input"),
    (nn.Sequential([nn.relu]), X, "has no nn.Dense or nn.Conv layer, so"),
    (
        nn.Sequential([nn.DenseGeneral(3), nn.relu, nn.Dense(2)]),
        X,
        r"not applied to the model's input \(it has the DenseGeneral layers_0",
    ),
    (
        nn.Sequential([nn.Conv(7, (1, 1)), nn.BatchNorm(True, axis=1)]),
        IMAGES,
        "BatchNorm layers_1 has axis 1: only one over the last",
    ),
    (convolution(strides=2), IMAGES, "has strides 2: layers merge at stride 1 only"),
    (convolution(padding="SAME"), IMAGES, "has padding 'SAME': zeros at the edge"),
    (convolution(padding=1), IMAGES, "has padding 1"),
    (convolution(kernel_dilation=2), IMAGES, "is dilated"),
    (nn.Sequential([nn.Conv(6, (3, 3), padding="VALID", feature_group_count=3)]), IMAGES, "groups"),
    (nn.Sequential([nn.Conv(4, (3,), padding="VALID")]), IMAGES[0], "is not over two axes"),
    (
        nn.Sequential(
            [nn.Conv(2, (7, 7), padding="VALID"), nn.relu, lambda x: x[:, 0, 0], nn.Dense(2)]
        ),
        IMAGES,
        "a convolution and a dense layer",
    ),
]


@pytest.mark.parametrize(("model", "x", "message"), REFUSED_LINEN)
def test_a_linen_model_that_is_no_chain_is_refused_with_a_sentence(model, x, message):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    with pytest.raises(ValueError, match=message):
        from_linen(model, variables, x)


@pytest.mark.parametrize(
    ("step", "x"),
    [
        (lambda x: x / 255, jnp.zeros((2, 6))),
        (lambda x: x / 255, jnp.zeros((2, 6), jnp.uint8)),
        (jnp.tanh, jnp.zeros((2, 6))),
        (lambda x: jnp.clip(x, -1, 1), jnp.ones((2, 6))),
        (lambda x: jnp.clip(x, -100, 100), jnp.ones((1, 1))),
        (nn.relu, jnp.ones((2, 6))),
    ],
)
def test_a_step_before_the_first_layer_shows_on_a_constant_batch(step, x):
    for model in (nn.Sequential([step, nn.Dense(3)]), nn.Sequential([nn.Dense(3)])):
        variables = model.init(jax.random.key(0), x)
        if len(model.layers) == 1:
            assert len(from_linen(model, variables, x)) == 1
        else:
            with pytest.raises(ValueError, match="is not applied to the model's input: do what"):
                from_linen(model, variables, x)


class Standardized(nn.Dense):
    """Its kernel is standardized before it is applied."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return x @ ((kernel - kernel.mean()) / kernel.std()) + bias.reshape(1, -1)


def test_a_linen_subclass_that_computes_something_else_is_refused():
    model = nn.Sequential([nn.Dense(4), nn.relu, Standardized(3)])
    with pytest.raises(ValueError, match="the Standardized layers_2 does not compute what its"):
        from_linen(model, model.init(jax.random.key(0), X), X)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_normalized_weights_and_short_types_are_fine(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.WeightNorm(nn.Dense(64, dtype=dtype))(x))
            return nn.Dense(3, dtype=dtype)(x)

    variables = randomized(Model().init(jax.random.key(0), X))
    chain = from_linen(Model(), variables, X)
    y = Model().apply(variables, X)
    np.testing.assert_allclose(
        np.asarray(apply_chain(chain, X), np.float32),
        np.asarray(y, np.float32),
        atol=2e-2 * float(jnp.max(jnp.abs(y))),
    )


def test_parameters_in_place_of_variables_are_refused_with_a_sentence():
    params = MLP(3, (4, 5)).init(jax.random.key(0), X, train=False)["params"]
    with pytest.raises(ValueError, match=r"no 'params' but hidden0, hidden1, head: pass what"):
        from_linen(MLP(3, (4, 5)), params, X, train=False)
    with pytest.raises(ValueError, match=r"the input batch has shape \(0, 6\): pass one"):
        from_linen(MLP(3, (4, 5)), {"params": params}, X[:0], train=False)


def test_nan_weights_are_refused_with_a_sentence():
    model = Dense()
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    variables = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    variables["params"]["b"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        from_linen(model, variables, X)


# NNX.


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
        ([nnx.LayerNorm(6, rngs=nnx.Rngs(0))], "LayerNorm 1 is no part of a chain"),
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


def nnx_linear(*sizes):
    return nnx.Linear(*sizes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "a NoneType is no nnx.Sequential: pass one, or the list of its parts"),
        (nnx_linear(6, 6), "a Linear is no nnx.Sequential"),
        (Custom(), "a Custom is no nnx.Sequential"),
        (Residual(nnx_linear(6, 6)), "a Residual is no nnx.Sequential.*from_linen"),
        ([nnx_linear(6, 6), nnx.relu, Residual(nnx_linear(6, 6))], "Residual 2 is no part"),
        ([nnx.LoRALinear(6, 6, lora_rank=2, rngs=nnx.Rngs(0))], "LoRALinear 0 is no part"),
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


def test_adapters_that_need_values_say_so_inside_jit():
    model = MLP(3, (4, 5))
    variables = model.init(jax.random.key(0), X, train=False)
    with pytest.raises(ValueError, match=r"from_linen looks at the weights.*use from_params\(var"):
        jax.jit(lambda v: from_linen(model, v, X, train=False))(variables)
    layer = from_mlp(variables["params"])[0]
    with pytest.raises(ValueError, match="fold_batch_norm looks at the weights' values, which jit"):
        jax.jit(fold_batch_norm)(layer, 1.0, 0.0, 0.0, 1.0)


def test_more_bad_nnx_parts_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="before the first layer"):
        from_nnx([nnx.relu])
    with pytest.raises(ValueError, match="strides 2"):
        from_nnx([nnx.Conv(3, 4, (1, 1), strides=2, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match="a chain is a sequence of one or more"):
        from_nnx([])


# Activations and BatchNorm.


def test_which_activations_allow_merging():
    assert check_activation(nn.relu) == check_activation("relu") == "relu"
    assert check_activation(None) == check_activation("linear") == "linear"
    for name in (*NAMES, "celu", "selu", "hard_tanh", "swish"):
        with pytest.raises(ValueError, match=f"layers do not merge over {name}: "):
            check_activation(name)
    with pytest.raises(ValueError, match="do not merge over leaky_relu: leaky_relu is linear on"):
        check_activation(partial(nn.leaky_relu, negative_slope=0.1))


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
