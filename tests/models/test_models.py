"""Sizes, names, features and initialization of the models; one residual block against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.models import MLP, CifarResNet, LeNet5, create_model
from cka_sr_jax.models.resnet import ResidualBlock
from cka_sr_jax.similarity import cka_penalty

KEY = jax.random.key(0)


def init_shapes(model, image=(32, 32, 3)):
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return jax.eval_shape(lambda x: model.init(KEY, x, train=True), x)


def feature_shapes(model, image=(32, 32, 3), train=True):
    """Shapes of what `apply` records with variables straight from `init`."""
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)

    def record(variables, x):
        return model.apply(variables, x, train=train, mutable=["features", "batch_stats"])

    _, mutables = jax.eval_shape(record, init_shapes(model, image), x)
    return jax.tree.map(lambda x: x.shape, mutables["features"])


def random_variables(model, image):
    """Positive random parameters and statistics: no compilation, no scale of 1, no bias of 0."""
    rng = np.random.default_rng(0)
    shapes = init_shapes(model, image)
    return jax.tree.map(lambda v: rng.uniform(0.1, 1, v.shape).astype(np.float32), shapes)


def maskable(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]) if p.ndim >= 2)


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


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


def test_lenet5():
    model = create_model("lenet5", 10)
    variables = init_shapes(model, (28, 28, 1))
    assert count(variables) == 61_706
    assert set(variables["params"]) == {"conv1", "conv2", "dense1", "dense2", "head"}
    assert feature_shapes(model, (28, 28, 1)) == {
        "conv": ((2, 28, 28, 6), (2, 10, 10, 16)),
        "dense": ((2, 120), (2, 84)),
    }
    assert feature_shapes(model, (32, 32, 3))["conv"] == ((2, 32, 32, 6), (2, 12, 12, 16))
    with pytest.raises(ValueError, match="12x12"):
        init_shapes(LeNet5(num_classes=10), (8, 8, 1))


def test_mlp():
    model = create_model("mlp", 10, hidden=(300, 200, 100))
    variables = init_shapes(model, (8, 8, 1))
    assert set(variables["params"]) == {"hidden0", "hidden1", "hidden2", "head"}
    assert feature_shapes(model, (8, 8, 1)) == {"hidden": ((2, 300), (2, 200), (2, 100))}
    assert count(init_shapes(MLP(num_classes=10), (28, 28, 1))) == 266_610  # LeNet-300-100


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


@pytest.mark.parametrize("depth", [0, 2, 17, 21])
def test_resnet_depth_must_be_6n_plus_2(depth):
    with pytest.raises(ValueError, match=f"depth={depth} is not 6n"):
        create_model(f"resnet{depth}", 10)


# --- One residual block against loops.


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
