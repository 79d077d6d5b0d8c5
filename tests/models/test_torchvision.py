"""State dicts of torchvision's ResNets: outputs against PyTorch's formulas in NumPy; refusals."""

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cka_sr_jax.models import create_model, from_torchvision
from cka_sr_jax.sparsity import leaf_paths

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
CLASSES = 5


def windows(x, size, stride, padding, around):
    """[b, c, h, w, size, size] of an image [b, c, h, w]."""
    pad = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, pad, constant_values=around)
    return sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]


def conv(x, state, name, stride=1, padding=0):
    weight = state[f"{name}.weight"]  # [out, in, h, w]
    seen = windows(x, weight.shape[-1], stride, padding, 0.0)
    return np.einsum("bchwij,ocij->bohw", seen, weight, optimize=True)


def norm(x, state, name):
    def of(key):
        return state[f"{name}.{key}"][:, None, None]

    deviation = np.sqrt(of("running_var") + 1e-5)
    return (x - of("running_mean")) / deviation * of("weight") + of("bias")


def torch_resnet(state, x, depth):
    """What torchvision's ResNet computes in evaluation, images [b, c, h, w], by the entries' names.

    The 3x3 convolution of a bottleneck has the stride.
    """
    x = np.maximum(norm(conv(x, state, "conv1", 2, 3), state, "bn1"), 0)
    x = windows(x, 3, 2, 1, -np.inf).max((-1, -2))
    for layer, count in enumerate(BLOCKS[depth], start=1):
        for i in range(count):
            name, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
            if depth == 18:
                convolutions = [("1", stride, 1), ("2", 1, 1)]
            else:
                convolutions = [("1", 1, 0), ("2", stride, 1), ("3", 1, 0)]
            y = x
            for number, step, padding in convolutions:
                y = norm(conv(y, state, f"{name}.conv{number}", step, padding), state,
                         f"{name}.bn{number}")  # fmt: skip
                y = y if number == convolutions[-1][0] else np.maximum(y, 0)
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, state, f"{name}.downsample.0", stride), state,
                         f"{name}.downsample.1")  # fmt: skip
            x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def state_dict(depth, width):
    """A random one, written out as torchvision names and shapes its entries."""
    rng, state = np.random.default_rng(0), {}

    def add_conv(name, inputs, outputs, size):
        fan_in = inputs * size**2
        state[f"{name}.weight"] = rng.normal(size=(outputs, inputs, size, size)) / fan_in**0.5

    def add_norm(name, channels):
        for key in ("weight", "running_var"):
            state[f"{name}.{key}"] = rng.uniform(0.5, 1.5, channels)
        for key in ("bias", "running_mean"):
            state[f"{name}.{key}"] = rng.normal(size=channels)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    add_conv("conv1", 3, width, 7)
    add_norm("bn1", width)
    last = width
    for layer, count in enumerate(BLOCKS[depth], start=1):
        features = width * 2 ** (layer - 1)
        outputs = features if depth == 18 else 4 * features
        sizes = (3, 3) if depth == 18 else (1, 3, 1)
        for i in range(count):
            name, inputs = f"layer{layer}.{i}", last
            for number, size in enumerate(sizes, start=1):
                channels = outputs if number == len(sizes) else features
                add_conv(f"{name}.conv{number}", inputs, channels, size)
                add_norm(f"{name}.bn{number}", channels)
                inputs = channels
            if last != outputs:
                add_conv(f"{name}.downsample.0", last, outputs, 1)
                add_norm(f"{name}.downsample.1", outputs)
            last = outputs
    state["fc.weight"] = rng.normal(size=(CLASSES, last)) / last**0.5
    state["fc.bias"] = rng.normal(size=CLASSES)
    return {name: np.asarray(array, np.float32) for name, array in state.items()}


def model_of(depth, width=4, classes=CLASSES, **options):
    return create_model(f"resnet{depth}", classes, stem="imagenet", width=width, **options)


@pytest.mark.parametrize(("depth", "width"), [(18, 4), (50, 2)])
def test_the_loaded_model_computes_what_pytorch_defines(depth, width):
    state, model = state_dict(depth, width), model_of(depth, width)
    variables = from_torchvision(state, model)
    images = np.random.default_rng(1).normal(size=(2, 3, 45, 38)).astype(np.float32)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits = apply(variables, images.transpose(0, 2, 3, 1))
    expected = torch_resnet({k: v.astype(np.float64) for k, v in state.items()}, images, depth)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_all_entries_are_used_and_are_float32():
    state = state_dict(18, 4)
    variables = from_torchvision({k: v.astype(np.float16) for k, v in state.items()}, model_of(18))
    leaves = dict(leaf_paths(variables))
    assert len(leaves) == len([name for name in state if "batches" not in name])
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}


def test_a_new_head_starts_as_a_model_of_its_own_does():
    variables = from_torchvision(state_dict(18, 32), model_of(18, 32, 7), jax.random.key(0))
    head = variables["params"]["head"]
    assert head["kernel"].shape == (256, 7)
    assert abs(np.std(head["kernel"]) / np.sqrt(2 / 256) - 1) < 0.1
    assert not head["bias"].any()


def without(name):
    return lambda state: state.pop(name)


def with_entry(name, shape):
    return lambda state: state.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer2.0.downsample.0.weight"), "no entry 'layer2.0.downsample.0.weight'"),
        (without("layer4.1.bn2.running_var"), "no entry 'layer4.1.bn2.running_var'"),
        (with_entry("layer4.2.conv1.weight", 3), "'layer4.2.conv1.weight' has no place"),
        (with_entry("fc.weight", (9, 32)), r"'fc.weight' has shape \(9, 32\).* \(5, 32\)"),
        (with_entry("conv1.weight", (4, 3, 3, 3)), r"'conv1.weight' has .*\(4, 3, 7, 7\): .*stem="),
        (with_entry("bn1.bias", ()), r"'bn1.bias' has shape \(\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = state_dict(18, 4)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torchvision(state, model_of(18))


@pytest.mark.parametrize(("name", "said"), [("resnet20", "depth 20"), ("mlp", "fit MLP")])
def test_another_model_is_refused(name, said):
    with pytest.raises(ValueError, match=f"{said}.*create_model"):
        from_torchvision(state_dict(18, 4), create_model(name, 10))
