"""Chains out of Linen models, and which models are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    apply_chain,
    from_linen,
    from_mlp,
)
from cka_sr_jax.models import MLP
from tests.layer_sparsity.chains import (
    IMAGES,
    X,
    close,
    randomized,
)


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
    (between(lambda x, y: jnp.sin(y)), X, "layers merge only in a chain"),
    (between(lambda x, y: jnp.clip(y, 0, 100)), X, "layers merge only in a chain"),
    (between(lambda x, y: nn.BatchNorm(True)(nn.relu(y))), X, "does not follow a layer directly"),
    (nn.Sequential([nn.Dense(3), nn.relu]), X, "is not that of its last layer, layers_0"),
    (nn.Sequential([nn.relu, nn.Dense(3)]), abs(X), "not applied to the model's input"),
    (nn.Sequential([nn.relu]), X, "has no nn.Dense or nn.Conv layer: make it"),
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
    (convolution(padding="SAME"), IMAGES, "has padding 'SAME': a merged layer would"),
    (convolution(padding=1), IMAGES, "has padding 1"),
    (convolution(kernel_dilation=2), IMAGES, "is dilated"),
    (nn.Sequential([nn.Conv(6, (3, 3), padding="VALID", feature_group_count=3)]), IMAGES, "groups"),
    (nn.Sequential([nn.Conv(4, (3,), padding="VALID")]), IMAGES[0], "is over 1 axes: only"),
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
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes integers to the kernel's type
        model = nn.Sequential([nn.Dense(3)])
        assert len(from_linen(model, model.init(jax.random.key(0), x), x)) == 1
        model = nn.Sequential([step, nn.Dense(3)])
        with pytest.raises(ValueError, match="is not applied to the model's input: do what"):
            from_linen(model, model.init(jax.random.key(0), x), x)


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


def test_it_needs_values_and_says_so_inside_jit():
    model = MLP(3, (4, 5))
    variables = model.init(jax.random.key(0), X, train=False)
    with pytest.raises(ValueError, match=r"from_linen looks at the weights.*use from_params\(var"):
        jax.jit(lambda v: from_linen(model, v, X, train=False))(variables)
