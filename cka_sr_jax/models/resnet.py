"""ResNets (He et al. 2016, arXiv 1512.03385) for CIFAR-sized images and for ImageNet's."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax._errors import unknown
from cka_sr_jax.models.layers import (
    at_least_float32,
    batch_norm,
    convolution,
    kaiming_normal,
    rematerialized,
    sow_feature,
)

Stem = Literal["cifar", "imagenet"]


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))), with 3x3 convolutions.

    The first convolution has the stride. The shortcut is the identity, or a strided 1x1
    convolution and BatchNorm where the shape changes.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The block's output; `train` normalizes by the batch's own statistics."""
        conv, norm = _layers(self.dtype, train)
        # Padding of 1 on each side, as in PyTorch: "SAME" with stride 2 pads the far side only.
        y = conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        return nn.relu(_shortcut(x, y.shape, self.stride, conv, norm) + y)


class BottleneckBlock(nn.Module):
    """relu(shortcut(x) + bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))).

    conv1 is 1x1 to `features` channels, conv2 3x3, conv3 1x1 to four times as many. conv2 has the
    stride, as in torchvision ("v1.5"); the paper gives it to conv1. The shortcut is that of
    `ResidualBlock`.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The block's output; `train` normalizes by the batch's own statistics."""
        conv, norm = _layers(self.dtype, train)
        y = conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(4 * self.features, (1, 1), name="conv3")(y)
        y = norm(name="bn3")(y)
        return nn.relu(_shortcut(x, y.shape, self.stride, conv, norm) + y)


def _layers(dtype: DTypeLike, train: bool) -> tuple[Any, Any]:
    """The convolution and the BatchNorm of this type."""
    norm = partial(batch_norm, use_running_average=not train, dtype=dtype)
    return partial(convolution, dtype=dtype), norm


def _shortcut(
    x: Float[Array, "b h w c"], shape: tuple[int, ...], stride: int, conv: Any, norm: Any
) -> Float[Array, "b h2 w2 c2"]:
    if x.shape == shape:
        return x
    x = conv(shape[-1], (1, 1), strides=stride, padding=0, name="shortcut_conv")(x)
    return norm(name="shortcut_bn")(x)


# The networks of the paper's ImageNet part: the blocks of each stage.
_FOUR_STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_FIRST_BOTTLENECK = 50  # from this depth on, they consist of bottleneck blocks


class ResNet(nn.Module):
    """ResNet: stem, stages of blocks, global average pooling, head.

    Depth 6n + 2 has three stages of n blocks with 16, 32 and 64 filters, for small images. Depth
    18, 34, 50, 101 and 152 have four stages with 64 to 512 filters; from 50 on, of bottleneck
    blocks, whose output has four times as many channels. Each stage but the first halves the
    image. Modules are "stem", "stem_bn", "stage1_block0", ..., "head".

    Attributes:
      width: filters of the first stage, doubled in each further one; None: as above.
      stem: "cifar", a 3x3 convolution; or "imagenet", a 7x7 convolution with stride 2 and 3x3 max
        pooling with stride 2, which the networks of four stages have for large images.
      remat: recompute each block in the backward pass, for which only its input is kept: less
        memory, about a third more operations.

    Features: stages "stage1", "stage2", ... of the blocks' outputs (after the final ReLU).

    Raises:
      ValueError: depth is not 6n + 2 with n >= 1, nor one of those above; a width below 1; an
        unknown stem, or "imagenet" with three stages.
    """

    num_classes: int
    depth: int = 20
    width: int | None = None
    dtype: DTypeLike = jnp.float32
    stem: Stem = "cifar"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth not in _FOUR_STAGES and (self.depth < 8 or self.depth % 6 != 2):
            raise ValueError(
                f"depth={self.depth} is not 6n + 2: use 20, 32, 44, 56 or 110, or 18, 34, 50, 101 "
                "or 152."
            )
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width}: expected 1 filter or more, such as 16.")
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(unknown("stem", self.stem, ("cifar", "imagenet")))
        if self.stem == "imagenet" and self.depth not in _FOUR_STAGES:
            raise ValueError(
                f"stem='imagenet' is for depth 18, 34, 50, 101 and 152 and depth is {self.depth}: "
                "use stem='cifar'."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones."""
        four = self.depth in _FOUR_STAGES
        blocks = _FOUR_STAGES.get(self.depth, ((self.depth - 2) // 6,) * 3)
        width = self.width or (64 if four else 16)
        kind = BottleneckBlock if four and self.depth >= _FIRST_BOTTLENECK else ResidualBlock
        block = rematerialized(kind, self.remat)
        conv, norm = _layers(self.dtype, train)
        large = self.stem == "imagenet"
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        x = conv(width, (size, size), strides=stride, padding=padding, name="stem")(x)
        x = nn.relu(norm(name="stem_bn")(x))
        if large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(blocks, start=1):
            for i in range(count):
                x = block(
                    features=width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train)
                sow_feature(self, f"stage{stage}", x)
        x = x.mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
