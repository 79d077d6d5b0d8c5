"""ResNets: sizes, names and features; blocks and a whole network against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.models import ResNet, create_model
from cka_sr_jax.models.resnet import BottleneckBlock, ResidualBlock
from tests.models.naive import naive_bottleneck, naive_max_pool, naive_residual, relu
from tests.models.oracle import assert_block_equals, assert_model_equals, block_variables, images
from tests.models.shapes import (
    KEY,
    count,
    feature_shapes,
    init_shapes,
    maskable,
    multiply_adds,
    random_variables,
)
from tests.speeds import fast_among


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
    variables = init_shapes(ResNet(num_classes=10, depth=14))
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
    model = ResNet(num_classes=3, depth=14, width=2)
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


CASES = [
    (ResidualBlock, naive_residual, 3, 1, False),
    (ResidualBlock, naive_residual, 5, 1, True),
    (ResidualBlock, naive_residual, 5, 2, True),
    (ResidualBlock, naive_residual, 3, 2, True),
    (BottleneckBlock, naive_bottleneck, 1, 1, False),
    (BottleneckBlock, naive_bottleneck, 2, 2, True),
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("kind", "naive", "features", "stride", "projection"), CASES)
@pytest.mark.parametrize("size", [6, 5])
def test_residual_block_equals_naive_numpy(kind, naive, features, stride, projection, size, train):
    x = images(4, size, size, 4 if kind is BottleneckBlock else 3)
    block = kind(features=features, stride=stride)
    assert ("shortcut_conv" in block_variables(block, x)["params"]) == projection
    assert_block_equals(block, partial(naive, stride=stride), x, train)


def naive_imagenet_resnet18(layers, x):
    """Features of each stage and logits."""
    x = relu(layers.norm(layers.conv(x, "stem", 2, 3), "stem_bn"))
    x = naive_max_pool(x, 3, 2, 1)
    features = {f"stage{stage}": [] for stage in (1, 2, 3, 4)}
    for stage, outputs in features.items():
        for i in (0, 1):
            stride = 2 if stage > "stage1" and i == 0 else 1
            x = naive_residual(layers.inside(f"{stage}_block{i}"), x, stride)
            outputs.append(x)
    return features, layers.dense(x.mean((1, 2)), "head")


def test_the_form_for_imagenet_equals_naive_numpy():
    model = create_model("resnet18", 3, stem="imagenet", width=2)
    assert_model_equals(model, naive_imagenet_resnet18, images(2, 37, 34, 3))


@pytest.mark.parametrize(
    ("depth", "parameters", "gmacs"),
    fast_among(
        [
            (18, 11_689_512, 1.81),
            (34, 21_797_672, 3.66),
            (50, 25_557_032, 4.09),
            (101, 44_549_160, 7.80),
            (152, 60_192_808, 11.51),
        ],
        (18, 11_689_512, 1.81),
        (34, 21_797_672, 3.66),
        (50, 25_557_032, 4.09),
    ),
)
def test_the_form_for_imagenet_has_torchvisions_parameters_and_multiply_adds(
    depth, parameters, gmacs
):
    model = create_model(f"resnet{depth}", 1000, stem="imagenet")
    variables = init_shapes(model, (224, 224, 3))
    assert count(variables) == parameters
    assert round(multiply_adds(model, variables, (224, 224, 3)) / 1e9, 2) == gmacs


def test_resnet50_for_imagenet_sows_each_bottleneck_into_its_stage():
    assert feature_shapes(create_model("resnet50", 1000, stem="imagenet"), (224, 224, 3)) == {
        "stage1": ((2, 56, 56, 256),) * 3,
        "stage2": ((2, 28, 28, 512),) * 4,
        "stage3": ((2, 14, 14, 1024),) * 6,
        "stage4": ((2, 7, 7, 2048),) * 3,
    }


@pytest.mark.parametrize(
    ("name", "stem", "message"),
    [
        ("resnet18", "imagnet", r"^Unknown stem 'imagnet': did you mean 'imagenet'\?$"),
        ("resnet20", "imagenet", r"^stem='imagenet' is for depth 18, 34, .* and depth is 20: use"),
    ],
)
def test_a_stem_that_a_resnet_lacks_is_refused(name, stem, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 10, stem=stem)


def test_a_stage_without_filters_is_refused():
    with pytest.raises(ValueError, match=r"^width=0: expected 1 filter or more, such as 16\.$"):
        create_model("resnet8", 10, width=0)


def test_a_block_of_no_widths_is_left_out():
    widths = ((4,), (), (8, 8), (16, 16))
    model = create_model("resnet8", 3, widths=widths)
    assert list(model.block_names) == ["stage2_block0", "stage3_block0"]
    x = jnp.ones((2, 8, 8, 3))
    _, sown = model.apply(
        jax.jit(lambda: model.init(jax.random.key(0), x, train=False))(),
        x,
        train=False,
        mutable=["features"],
    )
    assert list(sown["features"]) == ["stage2", "stage3"]


@pytest.mark.parametrize(
    "widths",
    [
        ((), (4, 4), (8, 8), (16, 16)),
        ((4,), (4, 4), (), (16, 16)),
        ((4,), (), (8, 8)),
        ((4,), (4,), (8, 8), (16, 16)),
    ],
)
def test_the_stem_and_blocks_that_project_are_never_left_out(widths):
    with pytest.raises(ValueError, match=r"widths=.* or \(\) for a block that adds its input"):
        create_model("resnet8", 3, widths=widths)
