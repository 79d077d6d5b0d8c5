"""ResNets (He et al. 2016, arXiv 1512.03385) for CIFAR-sized images and for ImageNet's."""

import itertools
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
    convolution and BatchNorm.

    Attributes:
      widths: output channels of each convolution in order; None: `features`.
      project: whether the shortcut is a convolution; None: where the shape changes.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    widths: tuple[int, ...] | None = None
    project: bool | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The block's output; `train` normalizes by the batch's own statistics."""
        conv, norm = _layers(self.dtype, train)
        # Padding of 1 on each side, as in PyTorch: "SAME" with stride 2 pads the far side only.
        inner, outputs = self.widths or (self.features,) * 2
        y = conv(inner, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(outputs, (3, 3), padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        project = x.shape != y.shape if self.project is None else self.project
        return nn.relu((_shortcut(x, outputs, self.stride, conv, norm) if project else x) + y)


class BottleneckBlock(nn.Module):
    """relu(shortcut(x) + bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))).

    conv1 is 1x1 to `features` channels, conv2 3x3, conv3 1x1 to four times as many. conv2 has the
    stride, as in torchvision ("v1.5"); the paper gives it to conv1. The shortcut and the last two
    attributes are those of `ResidualBlock`.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    widths: tuple[int, ...] | None = None
    project: bool | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The block's output; `train` normalizes by the batch's own statistics."""
        conv, norm = _layers(self.dtype, train)
        first, second, outputs = self.widths or (self.features, self.features, 4 * self.features)
        y = conv(first, (1, 1), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(second, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(outputs, (1, 1), name="conv3")(y)
        y = norm(name="bn3")(y)
        project = x.shape != y.shape if self.project is None else self.project
        return nn.relu((_shortcut(x, outputs, self.stride, conv, norm) if project else x) + y)


def _layers(dtype: DTypeLike, train: bool) -> tuple[Any, Any]:
    """The convolution and the BatchNorm of this type."""
    norm = partial(batch_norm, use_running_average=not train, dtype=dtype)
    return partial(convolution, dtype=dtype), norm


def _shortcut(
    x: Float[Array, "b h w c"], outputs: int, stride: int, conv: Any, norm: Any
) -> Float[Array, "b h2 w2 c2"]:
    x = conv(outputs, (1, 1), strides=stride, padding=0, name="shortcut_conv")(x)
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
      widths: output channels of the stem, then of each block's convolutions in order, in place of
        `width`'s: ((4,), (3, 4), (6, 8), (9, 16)) for depth 8. A block that adds its input keeps
        its channels, so all blocks of a stage end alike, and those of the first stage like the stem
        unless they are bottleneck blocks. () in place of a block that adds its input leaves the
        block out. `compact` makes such networks.

    Features: stages "stage1", "stage2", ... of the blocks' outputs (after the final ReLU).

    Raises:
      ValueError: depth is not 6n + 2 with n >= 1, nor one of those above; a width below 1; widths
        that do not fit the blocks; an unknown stem, or "imagenet" with three stages.
    """

    num_classes: int
    depth: int = 20
    width: int | None = None
    dtype: DTypeLike = jnp.float32
    stem: Stem = "cifar"
    remat: bool = False
    widths: tuple[tuple[int, ...], ...] | None = None

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
        if self.widths is not None:
            self._check_widths(self.widths)
        super().__post_init__()

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of blocks of each stage."""
        return _FOUR_STAGES.get(self.depth, ((self.depth - 2) // 6,) * 3)

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks are bottleneck blocks."""
        return self.depth in _FOUR_STAGES and self.depth >= _FIRST_BOTTLENECK

    @property
    def block_names(self) -> dict[str, bool]:
        """{name: whether its shortcut is a convolution} of each block that is there, in order."""
        widths = self.widths[1:] if self.widths else itertools.repeat(None)
        there = (block is None or len(block) > 0 for block in widths)
        named = zip(self.all_block_names.items(), there, strict=False)
        return {name: projects for (name, projects), is_there in named if is_there}

    @property
    def all_block_names(self) -> dict[str, bool]:
        """`block_names` with the blocks that widths leave out."""
        return {
            f"stage{stage}_block{i}": i == 0 and (stage > 1 or self.bottleneck)
            for stage, count in enumerate(self.blocks, start=1)
            for i in range(count)
        }

    def _check_widths(self, widths: tuple[tuple[int, ...], ...]) -> None:
        each = (1, *(3 if self.bottleneck else 2,) * sum(self.blocks))
        blocks = [block if isinstance(block, tuple | list) else () for block in widths]
        whole = all(isinstance(width, int) and width >= 1 for block in blocks for width in block)
        needed = (True, *self.all_block_names.values())  # and the stem, which no one may miss
        sizes = tuple(map(len, blocks))
        fit = len(sizes) == len(each) and all(
            size == right or (size == 0 and not must)
            for size, right, must in zip(sizes, each, needed, strict=True)
        )
        if not whole or not fit:
            raise ValueError(
                f"widths={widths}: expected whole numbers of 1 or more, one for the stem and then "
                f"{each[1]} for each of {len(each) - 1} blocks, such as ((16,), "
                f"{(16,) * each[1]}, ...), or () for a block that adds its input and is left out."
            )
        there = [block for block in widths if block]
        names = self.block_names.items()
        for (name, projected), before, after in zip(names, there[:-1], there[1:], strict=True):
            if not projected and before[-1] != after[-1]:
                raise ValueError(
                    f"widths={widths}: {name} adds its input of {before[-1]} channels to "
                    f"{after[-1]}; give both the same number."
                )

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones."""
        width = self.width or (64 if self.depth in _FOUR_STAGES else 16)
        widths = iter(self.widths) if self.widths else itertools.repeat(None)
        names = self.block_names
        stem = next(widths) or (width,)
        kind = BottleneckBlock if self.bottleneck else ResidualBlock
        block = rematerialized(kind, self.remat)
        conv, norm = _layers(self.dtype, train)
        large = self.stem == "imagenet"
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        x = conv(*stem, (size, size), strides=stride, padding=padding, name="stem")(x)
        x = nn.relu(norm(name="stem_bn")(x))
        if large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks, start=1):
            for i in range(count):
                name, block_widths = f"stage{stage}_block{i}", next(widths)
                if name not in names:
                    continue
                x = block(
                    features=width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    widths=block_widths,
                    project=names[name],
                    name=name,
                )(x, train)
                sow_feature(self, f"stage{stage}", x)
        x = x.mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
