"""VGG's size, names and features, and the whole network against NumPy."""

import pytest

from cka_sr_jax.models import VGG, create_model
from cka_sr_jax.models.vgg import ConvBlock
from tests.models.naive import naive_max_pool, relu
from tests.models.oracle import assert_block_equals, assert_model_equals, images
from tests.models.shapes import count, feature_shapes, init_shapes

FILTERS = {
    16: [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6,
    19: [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8,
}


@pytest.mark.parametrize(
    ("depth", "with_biases"), [(16, 14_728_266), (19, 20_035_018 + 5_504)], ids=["16", "19"]
)
def test_parameters_by_hand(depth, with_biases):
    """The known numbers: of VGG-16 with biases in its convolutions, of VGG-19 without."""
    outputs = FILTERS[depth]
    convolutions = sum(9 * i * o for i, o in zip([3, *outputs], outputs, strict=False))
    norms, head = 2 * sum(outputs), 512 * 10 + 10
    assert convolutions + sum(outputs) + norms + head == with_biases
    assert count(init_shapes(create_model(f"vgg{depth}", 10))) == convolutions + norms + head


def test_names():
    params = init_shapes(create_model("vgg16", 10))["params"]
    blocks = {f"stage{s}_block{i}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)}
    assert set(params) == {*blocks, "head"}
    assert {name: set(layer) for name, layer in params["stage1_block0"].items()} == {
        "conv": {"kernel"},
        "bn": {"scale", "bias"},
    }


def test_features_are_those_before_pooling():
    assert feature_shapes(create_model("vgg19", 10)) == {
        "stage1": ((2, 32, 32, 64),) * 2,
        "stage2": ((2, 16, 16, 128),) * 2,
        "stage3": ((2, 8, 8, 256),) * 4,
        "stage4": ((2, 4, 4, 512),) * 4,
        "stage5": ((2, 2, 2, 512),) * 4,
    }


def naive_block(layers, x):
    return relu(layers.norm(layers.conv(x, "conv", 1, 1), "bn"))


def naive_vgg16(layers, x):
    features = {f"stage{stage}": [] for stage in (1, 2, 3, 4, 5)}
    for (stage, outputs), number in zip(features.items(), (2, 2, 3, 3, 3), strict=True):
        if stage != "stage1":
            x = naive_max_pool(x, 2, 2, 0)
        for i in range(number):
            x = naive_block(layers.inside(f"{stage}_block{i}"), x)
            outputs.append(x)
    return features, layers.dense(x.mean((1, 2)), "head")


def test_a_block_in_training_equals_naive_numpy():
    assert_block_equals(ConvBlock(features=2), naive_block, images(3, 5, 4, 3), train=True)


def test_the_network_equals_naive_numpy_also_on_larger_images():
    assert_model_equals(create_model("vgg16", 3, width=1), naive_vgg16, images(2, 35, 50, 3))


def test_what_a_vgg_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^Unknown model 'vgg17', since depth=17 .* use 16 or 19"):
        create_model("vgg17", 10)
    with pytest.raises(ValueError, match=r"^width=0: expected 1 filter or more, such as 64\.$"):
        create_model("vgg16", 10, width=0)
    with pytest.raises(ValueError, match=r"^VGG needs images of 16x16 or more, not \(32, 15\)\."):
        init_shapes(VGG(num_classes=10), (32, 15, 3))
