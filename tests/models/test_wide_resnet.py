"""Wide ResNets: size, names and features; a block and a whole network against NumPy."""

from functools import partial

import pytest

from cka_sr_jax.models import create_model
from cka_sr_jax.models.wide_resnet import PreactivationBlock
from tests.models.naive import naive_preactivation, relu
from tests.models.oracle import assert_block_equals, assert_model_equals, block_variables, images
from tests.models.shapes import count, feature_shapes, init_shapes


def parameters(depth, k, classes):
    """Convolutions without biases, BatchNorm, and the head, counted by hand."""
    blocks, total, before = (depth - 4) // 6, 3 * 9 * 16, 16
    for filters in (16 * k, 32 * k, 64 * k):
        if before != filters:
            total += before * filters  # the shortcut of the first block
        total += 9 * before * filters + 2 * before  # its first convolution and BatchNorm
        total += (2 * blocks - 1) * (9 * filters**2 + 2 * filters)  # all the others
        before = filters
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("depth", "widening", "published"),
    [(28, 10, 36.5e6), (22, 2, None), (16, 4, 2.7e6), (10, 1, None)],
)
def test_parameters_by_hand(depth, widening, published):
    expected = parameters(depth, widening, 10)
    assert count(init_shapes(create_model(f"wrn{depth}-{widening}", 10))) == expected
    assert published is None or abs(expected / published - 1) < 0.02
    if depth == 28:
        assert expected == 36_479_194


def test_names():
    params = init_shapes(create_model("wrn16-1", 10))["params"]
    blocks = {f"stage{s}_block{i}" for s in (1, 2, 3) for i in (0, 1)}
    assert set(params) == {"stem", *blocks, "final_bn", "head"}
    inner = {"bn1", "conv1", "bn2", "conv2"}
    assert set(params["stage1_block0"]) == inner  # of the stem's width
    assert set(params["stage2_block0"]) == inner | {"shortcut_conv"}
    assert set(params["stem"]) == set(params["stage2_block0"]["shortcut_conv"]) == {"kernel"}


def test_features():
    assert feature_shapes(create_model("wrn22-2", 10)) == {
        "stage1": ((2, 32, 32, 32),) * 3,
        "stage2": ((2, 16, 16, 64),) * 3,
        "stage3": ((2, 8, 8, 128),) * 3,
    }


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("features", "stride", "projection"), [(3, 1, False), (5, 1, True), (5, 2, True)]
)
def test_a_block_equals_naive_numpy(features, stride, projection, train):
    block, x = PreactivationBlock(features=features, stride=stride), images(4, 6, 5, 3)
    assert ("shortcut_conv" in block_variables(block, x)["params"]) == projection
    assert_block_equals(block, partial(naive_preactivation, stride=stride), x, train)


def naive_wrn16(layers, x):
    x = layers.conv(x, "stem", 1, 1)
    features = {f"stage{stage}": [] for stage in (1, 2, 3)}
    for stage, outputs in features.items():
        for i in (0, 1):
            stride = 2 if stage > "stage1" and i == 0 else 1
            x = naive_preactivation(layers.inside(f"{stage}_block{i}"), x, stride)
            outputs.append(x)
    x = relu(layers.norm(x, "final_bn"))
    return features, layers.dense(x.mean((1, 2)), "head")


def test_the_network_equals_naive_numpy():
    assert_model_equals(create_model("wrn16-2", 3, width=2), naive_wrn16, images(2, 9, 8, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn21-2", {}, r"^Unknown model 'wrn21-2', since depth=21 is not 6n \+ 4: use 16, 22, 28"),
        ("wrn4-2", {}, r"^Unknown model 'wrn4-2', since depth=4 is not 6n \+ 4"),
        ("wrn22-0", {}, r"^Unknown model 'wrn22-0', since widening=0: expected 1 or more"),
        ("wrn22", {}, r"^Unknown model 'wrn22': did you mean 'wrn22-2'\?$"),
        ("wrn22-2", {"width": 0}, r"^width=0: expected 1 filter or more, such as 16\.$"),
        ("wrn22-2", {"widening": 4}, "^Unknown option of wrn22-2 'widening'"),
    ],
)
def test_what_a_wide_resnet_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 10, **options)
