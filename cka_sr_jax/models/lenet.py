"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import (
    at_least_float32,
    check_widths,
    kaiming_normal,
    sow_feature,
)

_WIDTHS = (6, 16, 120, 84)


class LeNet5(nn.Module):
    """Convolutions of 6 and 16 5x5 filters, then dense layers of 120 and 84, then "head".

    Each convolution is followed by ReLU and 2x2 max pooling. The first pads by 2, which gives the
    usual 61,706 parameters for 28x28 images and 10 classes (the original padded the images to
    32x32); other sizes from 12x12 on work too.

    Attributes:
      widths: of the two convolutions and the two dense layers.

    Features: stages "conv" (after ReLU, before pooling) and "dense" (after ReLU), two each.

    Raises:
      ValueError: widths that are not four numbers of 1 or more.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    widths: tuple[int, ...] = _WIDTHS

    def __post_init__(self) -> None:
        check_widths(self.widths, "the two convolutions and the two dense layers", _WIDTHS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` changes nothing.

        Raises:
          ValueError: images smaller than 12x12.
        """
        if min(x.shape[1:3]) < 12:
            raise ValueError(f"LeNet5 needs images of 12x12 or more, not {x.shape[1:3]}.")
        conv = partial(nn.Conv, kernel_size=(5, 5), kernel_init=kaiming_normal, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=kaiming_normal, dtype=self.dtype)
        for i, filters in enumerate(self.widths[:2], start=1):
            x = nn.relu(conv(filters, padding=2 if i == 1 else 0, name=f"conv{i}")(x))
            sow_feature(self, "conv", x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)  # len(x) would need a number: jax.export has none
        for i, width in enumerate(self.widths[2:], start=1):
            x = nn.relu(dense(width, name=f"dense{i}")(x))
            sow_feature(self, "dense", x)
        return at_least_float32(dense(self.num_classes, name="head")(x))
