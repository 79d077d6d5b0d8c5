"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021 for DeiT)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import at_least_float32, rematerialized, sow_feature

# {name: (width, depth, heads)}; "small32" is for images of 32x32 and less.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "small32": (192, 6, 3)}

_small_normal = nn.initializers.truncated_normal(0.02)
_xavier = nn.initializers.xavier_uniform()
_norm = partial(nn.LayerNorm, epsilon=1e-6)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with GELU and four times the width."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], train: bool) -> Float[Array, "b t d"]:
        """The tokens after the block; `train` changes nothing."""
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_xavier, dtype=self.dtype)
        y = _norm(dtype=self.dtype, name="attention_norm")(x)
        x = x + nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=_xavier, dtype=self.dtype, deterministic=True, name="attention"
        )(y)
        y = _norm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.gelu(dense(4 * width, name="up")(y), approximate=False)
        return x + dense(width, name="down")(y)


class ViT(nn.Module):
    """Patches, a class token and positions, pre-norm blocks "block0", ..., "norm", then "head".

    Features: one stage "blocks" of each block's tokens [b, 1 + patches, width], with the class
    token first. CKA compares them flattened, as it does images.

    Args:
      size: "tiny" (DeiT-Tiny), "small", "base", or "small32" for small images.
      patch: side of a patch in pixels, which must divide the image's.
      remat: keep each block's input alone for the gradient.

    Raises:
      ValueError: an unknown size; patches that do not divide the image.
    """

    num_classes: int
    size: str = "tiny"
    patch: int = 16
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Refuse an unknown size."""
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r} is unknown: use {', '.join(map(repr, SIZES))}.")
        if self.patch < 1:
            raise ValueError(f"patch={self.patch}: expected 1 pixel or more, such as 4 or 16.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits of the class token; `train` changes nothing."""
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height}x{width} cannot be cut into patches of {self.patch}x"
                f"{self.patch}: set patch to a divisor, such as {_divisor(height, width)}."
            )
        channels, depth, heads = SIZES[self.size]
        x = nn.Conv(
            channels, (self.patch,) * 2, strides=self.patch, padding="VALID", dtype=self.dtype,
            name="patches",
        )(x)  # fmt: skip
        x = x.reshape(x.shape[0], -1, channels)
        token = self.param("class_token", _small_normal, (1, 1, channels)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, channels)), x], axis=1)
        x = x + self.param("positions", _small_normal, (1, x.shape[1], channels)).astype(x.dtype)
        block = rematerialized(TransformerBlock, self.remat)
        for i in range(depth):
            x = block(heads=heads, dtype=self.dtype, name=f"block{i}")(x, train)
            sow_feature(self, "blocks", x)
        x = _norm(dtype=self.dtype, name="norm")(x)[:, 0]
        return at_least_float32(nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x))


def _divisor(height: int, width: int) -> int:
    """The largest side of a patch, up to a quarter of the image, that divides both."""
    return max(
        p for p in range(1, max(2, min(height, width) // 4 + 1)) if not (height % p or width % p)
    )
