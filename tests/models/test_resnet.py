"""ResNets: sizes, names and features; one residual block against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.models import CifarResNet, create_model
from cka_sr_jax.models.resnet import ResidualBlock
from tests.models.shapes import KEY, feature_shapes, init_shapes, maskable, random_variables


@pytest.mark.parametrize(("classes", "weights"), [(10, 270_896), (100, 276_656)])
def test_resnet20_has_the_published_number_of_weights(classes, weights):
    assert maskable(init_shapes(create_model("resnet20", classes))) == weights


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_173_962), (34, 21_282_122)])
def test_resnets_of_four_stages_have_the_parameters_of_the_usual_cifar_versions(depth, parameters):
    params = init_shapes(create_model(f"resnet{depth}", 10))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("depth", [8, 18, 32, 34, 110])
def test_resnet_depth_is_its_number_of_weighted_layers(depth):
    params = init_shapes(create_model(f"resnet{depth}", 10))["params"]
    kernels = [path for path, leaf in jax.tree.leaves_with_path(params) if leaf.ndim >= 2]
    shortcuts = [path for path in kernels if "shortcut_conv" in jax.tree_util.keystr(path)]
    assert len(kernels) - len(shortcuts) == depth
    assert len(shortcuts) == (3 if depth in (18, 34) else 2)


def test_resnet_names():
    variables = init_shapes(CifarResNet(num_classes=10, depth=14))
    assert set(variables) == {"params", "batch_stats"}
    params = variables["params"]
    blocks = {f"stage{s}_block{i}" for s in (1, 2, 3) for i in (0, 1)}
    assert set(params) == {"stem", "stem_bn", *blocks, "head"}
    inner = {"conv1", "bn1", "conv2", "bn2"}
    assert set(params["stage1_block0"]) == inner
    assert set(params["stage2_block0"]) == inner | {"shortcut_conv", "shortcut_bn"}
    assert set(params["stage2_block1"]) == inner
    assert set(params["stem"]) == {"kernel"}
    assert params["stage3_block0"]["shortcut_conv"]["kernel"].shape == (1, 1, 32, 64)


def test_resnet_sows_each_block_into_its_stage():
    assert feature_shapes(create_model("resnet20", 10)) == {
        "stage1": ((2, 32, 32, 16),) * 3,
        "stage2": ((2, 16, 16, 32),) * 3,
        "stage3": ((2, 8, 8, 64),) * 3,
    }


def test_resnet_sows_in_order_of_execution_and_evaluation_sows_too():
    model = CifarResNet(num_classes=3, depth=14, width=2)
    variables = random_variables(model, (8, 8, 1))
    x = jax.random.normal(KEY, (4, 8, 8, 1))

    @jax.jit
    def record(x):
        collections = ["features", "intermediates"]
        return model.apply(
            variables, x, train=False, mutable=collections, capture_intermediates=True
        )[1]

    mutables = record(x)
    for stage in (1, 2, 3):
        for i in (0, 1):
            (output,) = mutables["intermediates"][f"stage{stage}_block{i}"]["__call__"]
            np.testing.assert_array_equal(mutables["features"][f"stage{stage}"][i], output)


@pytest.mark.parametrize("depth", [0, 2, 17, 21])
def test_resnet_depth_must_be_6n_plus_2(depth):
    with pytest.raises(ValueError, match=f"depth={depth} is not 6n"):
        create_model(f"resnet{depth}", 10)


def naive_conv(x, kernel, stride, padding):
    """Cross-correlation by its definition: NHWC image, HWIO kernel, zeros around."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((s - size) // stride + 1 for s in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size, :]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return out


def naive_norm(x, params, stats, train):
    """Normalized x, and the running statistics after it."""
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    y = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    if not train:
        return y, stats
    return y, {
        "mean": 0.9 * stats["mean"] + 0.1 * mean,
        "var": 0.9 * stats["var"] + 0.1 * var,
    }


def naive_block(x, params, stats, stride, train):
    after = {}
    y = naive_conv(x, params["conv1"]["kernel"], stride, padding=1)
    y, after["bn1"] = naive_norm(y, params["bn1"], stats["bn1"], train)
    y = naive_conv(np.maximum(y, 0), params["conv2"]["kernel"], 1, padding=1)
    y, after["bn2"] = naive_norm(y, params["bn2"], stats["bn2"], train)
    if "shortcut_conv" in params:
        x = naive_conv(x, params["shortcut_conv"]["kernel"], stride, padding=0)
        x, after["shortcut_bn"] = naive_norm(x, params["shortcut_bn"], stats["shortcut_bn"], train)
    return np.maximum(x + y, 0), after


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("features", "stride", "projection"), [(3, 1, False), (5, 1, True), (5, 2, True), (3, 2, True)]
)
@pytest.mark.parametrize("size", [6, 5])
def test_residual_block_equals_naive_numpy(features, stride, projection, size, train):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, size, size, 3)).astype(np.float32)
    block, images = ResidualBlock(features=features, stride=stride), jnp.asarray(x)
    variables = jax.eval_shape(lambda: block.init(KEY, images, train=True))
    # Random everywhere, so that no scale is 1 and no bias 0.
    variables = jax.tree.map(lambda v: rng.uniform(0.1, 1, v.shape).astype(np.float32), variables)
    assert ("shortcut_conv" in variables["params"]) == projection
    apply = jax.jit(lambda v: block.apply(v, images, train=train, mutable=["batch_stats"]))
    y, after = apply(variables)
    expected, stats = naive_block(
        x.astype(np.float64), variables["params"], variables["batch_stats"], stride, train
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        after["batch_stats"] if train else variables["batch_stats"],
        stats,
    )


def test_a_stage_without_filters_is_refused():
    with pytest.raises(ValueError, match=r"^width=0: expected 1 filter or more, such as 16\.$"):
        create_model("resnet8", 10, width=0)
