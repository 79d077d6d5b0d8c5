"""Wide ResNets (Zagoruyko and Komodakis 2016, arXiv 1605.07146) for CIFAR-sized images."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import (
    at_least_float32,
    batch_norm,
    convolution,
    kaiming_normal,
    rematerialized,
    sow_feature,
)


class PreactivationBlock(nn.Module):
    """shortcut + conv2(relu(bn2(conv1(a)))), with a = relu(bn1(x)) and 3x3 convolutions.

    The first convolution has the stride. The shortcut is x, or a strided 1x1 convolution of a
    where the shape changes.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The block's output; `train` normalizes by the batch's own statistics."""
        conv = partial(convolution, self.features, dtype=self.dtype)
        norm = partial(batch_norm, use_running_average=not train, dtype=self.dtype)
        a = nn.relu(norm(name="bn1")(x))
        y = conv((3, 3), strides=self.stride, padding=1, name="conv1")(a)
        y = nn.relu(norm(name="bn2")(y))
        y = conv((3, 3), padding=1, name="conv2")(y)
        if x.shape != y.shape:
            x = conv((1, 1), strides=self.stride, padding=0, name="shortcut_conv")(a)
        return x + y


class WideResNet(nn.Module):
    """WRN-depth-widening: stem, three stages of (depth - 4) / 6 blocks, BatchNorm, ReLU, "head".

    The 3x3 stem has 16 filters, the stages 16, 32 and 64 times `widening`. Each stage but the
    first halves the image, and the head follows global average pooling. There is no dropout.
    Modules are "stem", "stage1_block0", ..., "final_bn", "head".

    Attributes:
      width: filters of the stem, which the stages' are multiples of.
      remat: as in `ResNet`.

    Features: stages "stage1", "stage2", "stage3" of the blocks' outputs: sums that the next block
    normalizes, without a ReLU.

    Raises:
      ValueError: depth is not 6n + 4 with n >= 1; a widening or width below 1.
    """

    num_classes: int
    depth: int = 22
    widening: int = 2
    width: int = 16
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth={self.depth} is not 6n + 4: use 16, 22, 28 or 40.")
        if self.widening < 1:
            raise ValueError(f"widening={self.widening}: expected 1 or more, such as 2.")
        if self.width < 1:
            raise ValueError(f"width={self.width}: expected 1 filter or more, such as 16.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones."""
        block = rematerialized(PreactivationBlock, self.remat)
        x = convolution(self.width, (3, 3), padding=1, dtype=self.dtype, name="stem")(x)
        for stage in (1, 2, 3):
            for i in range((self.depth - 4) // 6):
                x = block(
                    features=self.width * self.widening * 2 ** (stage - 1),
                    stride=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train)
                sow_feature(self, f"stage{stage}", x)
        norm = batch_norm(use_running_average=not train, dtype=self.dtype, name="final_bn")
        x = nn.relu(norm(x)).mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
