"""What the models share: the initialization and the recording of features."""

import flax.linen as nn
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider

# N(0, 2 / fan_in), not truncated (He et al. 2015, arXiv 1502.01852); Flax's `he_normal` truncates.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def at_least_float32(logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """The logits in float32, or in float64 where that is what the model computes in."""
    return logits.astype(float32_or_wider(logits.dtype))


def sow_feature(module: nn.Module, stage: str, x: Float[Array, "b ..."]) -> None:
    """Append x to the features of a stage; not in `init`, whose result `apply` would append to."""
    if not module.is_initializing():
        module.sow("features", stage, x)
