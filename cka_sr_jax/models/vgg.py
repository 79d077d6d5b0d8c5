"""VGG with BatchNorm and a single linear layer, as in the sparse-training literature."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import (
    at_least_float32,
    batch_norm,
    check_widths,
    convolution,
    kaiming_normal,
    rematerialized,
    sow_feature,
)

# Convolutions of each stage, and filters of a stage as multiples of the first one's.
_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_MULTIPLES = (1, 2, 4, 8, 8)


class ConvBlock(nn.Module):
    """relu(bn(conv(x))), with a 3x3 convolution without bias."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "..."]:
        """The block's output [b, h, w, features]; `train` normalizes by the batch's statistics."""
        x = convolution(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")(x)
        norm = batch_norm(use_running_average=not train, dtype=self.dtype, name="bn")
        return nn.relu(norm(x))


class VGG(nn.Module):
    """Five stages of 3x3 convolutions (Simonyan and Zisserman 2015, arXiv 1409.1556), and "head".

    The stages have 64, 128, 256, 512 and 512 filters. Each convolution is followed by BatchNorm and
    ReLU, each stage but the last by 2x2 max pooling, and the last by global average pooling: 32x32
    images end as 2x2, and larger images work too. There is one linear layer, where the paper has
    three. Convolutions have no biases, which BatchNorm would undo; codes that keep them count 4,224
    (VGG-16) or 5,504 (VGG-19) parameters more. Modules are "stage1_block0", ..., "head", and "conv"
    and "bn" inside a block.

    Attributes:
      depth: 16 or 19 layers with weights, by the paper's count; the single linear layer makes it
        14 or 17.
      width: filters of the first stage.
      widths: filters of each convolution in order, in place of `width`'s; None: as above.
      remat: as in `ResNet`.

    Features: stages "stage1" to "stage5" of the blocks' outputs (after ReLU, before pooling).

    Raises:
      ValueError: another depth; a width below 1; widths that are not one for each convolution.
    """

    num_classes: int
    depth: int = 16
    width: int = 64
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.depth not in _STAGES:
            raise ValueError(f"depth={self.depth} is not that of a VGG here: use 16 or 19.")
        if self.width < 1:
            raise ValueError(f"width={self.width}: expected 1 filter or more, such as 64.")
        if self.widths is not None:
            check_widths(self.widths, "the convolutions in order", self._filters())
        super().__post_init__()

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks' names, in order."""
        counts = enumerate(_STAGES[self.depth], start=1)
        return tuple(f"stage{stage}_block{i}" for stage, count in counts for i in range(count))

    def _filters(self) -> tuple[int, ...]:
        """The filters of each convolution that `width` gives."""
        counts = zip(_STAGES[self.depth], _MULTIPLES, strict=True)
        return tuple(self.width * multiple for count, multiple in counts for _ in range(count))

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones.

        Raises:
          ValueError: images smaller than 16x16.
        """
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"VGG needs images of 16x16 or more, not {x.shape[1:3]}.")
        block = rematerialized(ConvBlock, self.remat)
        filters = iter(self.widths or self._filters())
        for stage, count in enumerate(_STAGES[self.depth], start=1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for i in range(count):
                x = block(next(filters), dtype=self.dtype, name=f"stage{stage}_block{i}")(x, train)
                sow_feature(self, f"stage{stage}", x)
        x = x.mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
