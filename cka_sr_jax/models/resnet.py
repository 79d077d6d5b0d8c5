"""ResNets for CIFAR-sized images (He et al. 2016, arXiv 1512.03385), with projection shortcuts."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import at_least_float32, kaiming_normal, sow_feature

_conv = partial(nn.Conv, use_bias=False, kernel_init=kaiming_normal)
# PyTorch's defaults: its momentum of 0.1 is 0.9 here.
_norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


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
        conv = partial(_conv, self.features, dtype=self.dtype)
        norm = partial(_norm, use_running_average=not train, dtype=self.dtype)
        # Padding of 1 on each side, as in PyTorch: "SAME" with stride 2 pads the far side only.
        y = conv((3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv((3, 3), padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        if x.shape != y.shape:
            x = conv((1, 1), strides=self.stride, padding=0, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        return nn.relu(x + y)


# Blocks of each stage of the ImageNet networks that are used on CIFAR too, with a 3x3 stem.
_FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class CifarResNet(nn.Module):
    """ResNet for small images: stem, stages of blocks, global average pooling, head.

    Depth 6n + 2 has three stages of n blocks with 16, 32 and 64 filters; 18 and 34 have the four
    stages of the ImageNet networks, with 64 to 512 filters, and no pooling after the stem. Each
    stage but the first halves the image. Modules are "stem", "stem_bn", "stage1_block0", ...,
    "head".

    Attributes:
      width: filters of the first stage, doubled in each further one; None: as above.

    Features: stages "stage1", "stage2", ... of the blocks' outputs (after the final ReLU).

    Raises:
      ValueError: depth is not 6n + 2 with n >= 1, nor 18 or 34; a width below 1.
    """

    num_classes: int
    depth: int = 20
    width: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if self.depth not in _FOUR_STAGES and (self.depth < 8 or self.depth % 6 != 2):
            raise ValueError(
                f"depth={self.depth} is not 6n + 2: use 20, 32, 44, 56 or 110, or 18 or 34."
            )
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width}: expected 1 filter or more, such as 16.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones."""
        blocks = _FOUR_STAGES.get(self.depth, ((self.depth - 2) // 6,) * 3)
        width = self.width or (64 if self.depth in _FOUR_STAGES else 16)
        x = _conv(width, (3, 3), padding=1, dtype=self.dtype, name="stem")(x)
        x = nn.relu(_norm(use_running_average=not train, dtype=self.dtype, name="stem_bn")(x))
        for stage, count in enumerate(blocks, start=1):
            for i in range(count):
                x = ResidualBlock(
                    features=width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train)
                sow_feature(self, f"stage{stage}", x)
        x = x.mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
