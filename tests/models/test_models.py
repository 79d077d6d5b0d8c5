"""What all models share: initialization, low precision, features, and names that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.models import CifarResNet, create_model
from cka_sr_jax.similarity import cka_penalty
from tests.models.shapes import KEY, init_shapes


def test_weights_start_normal_with_variance_two_over_fan_in():
    model = CifarResNet(num_classes=1000, depth=8)
    params = jax.jit(lambda: model.init(KEY, jnp.ones((1, 8, 8, 3)), train=True))()["params"]
    kernel = params["stage3_block0"]["conv2"]["kernel"]
    normalized = np.ravel(kernel) / np.sqrt(2 / (3 * 3 * 64))
    assert abs(normalized.std() - 1) < 0.01
    assert abs(normalized.mean()) < 0.02
    # A normal cut at two standard deviations, as in "he_normal", has none of its 4.6 % beyond.
    assert 0.04 < np.mean(np.abs(normalized) > 2) < 0.05
    head = params["head"]["kernel"]
    assert abs(np.std(head) / np.sqrt(2 / 64) - 1) < 0.01
    assert not np.any(params["head"]["bias"])


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet8"])
def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32(name, dtype):
    model = create_model(name, 10, dtype=dtype)
    x = jnp.ones((4, 12, 12, 1))
    variables = init_shapes(model, (12, 12, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, mutables = jax.eval_shape(
        lambda v: model.apply(v, x, train=True, mutable=["features", "batch_stats"]), variables
    )
    assert logits.dtype == jnp.float32
    features, others = mutables.pop("features"), mutables
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} <= {jnp.dtype("float32")}


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_logits_are_near_those_of_float32():
    x = jax.random.normal(KEY, (8, 8, 8, 3))
    model, half = (create_model("resnet8", 10, dtype=d) for d in ("float32", "bfloat16"))
    variables = jax.jit(lambda: model.init(KEY, x, train=True))()

    def logits(model):
        return jax.jit(lambda: model.apply(variables, x, train=True, mutable=True)[0])()

    error = np.linalg.norm(logits(half) - logits(model)) / np.linalg.norm(logits(model))
    assert 0 < error < 0.05


def test_sown_features_go_into_the_penalty_and_its_gradient():
    model = create_model("lenet5", 3)
    x = jax.random.normal(KEY, (8, 12, 12, 1))
    variables = jax.jit(lambda: model.init(KEY, x, train=True))()

    def penalty(params):
        _, mutables = model.apply({"params": params}, x, train=True, mutable=["features"])
        return cka_penalty(mutables["features"])

    value, grads = jax.jit(jax.value_and_grad(penalty))(variables["params"])
    assert 0 < value < 4  # two pairs of alike layers, each counted twice
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert np.any(grads["conv1"]["kernel"])
    assert not np.any(grads["head"]["kernel"])


def test_unknown_names_and_options_say_what_is_known():
    with pytest.raises(ValueError, match=r"resnt20.*did you mean 'resnet"):
        create_model("resnt20", 10)
    with pytest.raises(ValueError, match=r"mpl.*did you mean 'mlp'"):
        create_model("mpl", 10)
    with pytest.raises(ValueError, match=r"option of resnet20 'widht'.*'width'"):
        create_model("resnet20", 10, widht=16)
    with pytest.raises(ValueError, match=r"option of mlp 'width'.*dtype, hidden"):
        create_model("mlp", 10, width=16)
    with pytest.raises(ValueError, match="option of resnet20 'depth'"):
        create_model("resnet20", 10, depth=32)
