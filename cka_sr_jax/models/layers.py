"""What the models share: layers, the recording of features, and rematerialization."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider

# N(0, 2 / fan_in), not truncated (He et al. 2015, arXiv 1502.01852); Flax's `he_normal` truncates.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# A convolution without bias, as a BatchNorm follows or precedes each.
convolution = partial(nn.Conv, use_bias=False, kernel_init=kaiming_normal)
# PyTorch's defaults: its momentum of 0.1 is 0.9 here.
batch_norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def at_least_float32(logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """The logits in float32, or in float64 where that is what the model computes in."""
    return logits.astype(float32_or_wider(logits.dtype))


def check_widths(widths: Sequence[int], layers: str, example: Sequence[int]) -> None:
    """Raise ValueError unless there is a whole number of 1 or more for each of these layers.

    Args:
      layers: what the widths are of, as in "the convolutions and dense layers".
      example: widths that work, one for each layer.
    """
    whole = all(isinstance(width, int) and width >= 1 for width in widths)
    if not whole or len(widths) != len(example):
        raise ValueError(
            f"widths={tuple(widths)}: expected {len(example)} whole numbers of 1 or more, for "
            f"{layers}, such as {tuple(example)}."
        )


def sow_feature(module: nn.Module, stage: str, x: Float[Array, "b ..."]) -> None:
    """Append x to the features of a stage; not in `init`, whose result `apply` would append to."""
    if not module.is_initializing():
        module.sow("features", stage, x)


def rematerialized(block: type[nn.Module], remat: bool) -> Callable[..., Callable[..., Array]]:
    """The class of a block called as `block(x, train)`, which keeps x alone for the gradient.

    The backward pass computes the block once more. Names and parameters stay the same. On a CPU,
    XLA merges the two computations and saves nothing.

    Args:
      remat: False gives the block as it is.
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block  # `train` decides in Python
