"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021 for DeiT)."""

import itertools
import math
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax._errors import unknown
from cka_sr_jax.models.layers import at_least_float32, rematerialized, sow_feature
from cka_sr_jax.models.tokens import (
    attention_among_kept,
    cka_with_other_tokens,
    gather_tokens,
    keep_rate_loss,
    kept_count,
    sampled_keep,
    top_tokens,
)

KeepBy = Literal["score", "score-cka"]

# {name: (width, depth, heads)}; "small32" is for images of 32x32 and less, "micro" for a CPU.
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "small32": (192, 6, 3),
    "micro": (64, 4, 2),
}

_small_normal = nn.initializers.truncated_normal(0.02)
_xavier = nn.initializers.xavier_uniform()
_norm = partial(nn.LayerNorm, epsilon=1e-6)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with GELU and four times the width.

    With `kept`, 1 or 0 for each token, no token attends to dropped ones but themselves.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], train: bool, kept: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        """The tokens after the block; `train` changes nothing."""
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_xavier, dtype=self.dtype)
        y = _norm(dtype=self.dtype, name="attention_norm")(x)
        attend = nn.dot_product_attention if kept is None else partial(_attend, kept)
        x = x + nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=_xavier, dtype=self.dtype, deterministic=True,
            attention_fn=attend, name="attention",
        )(y)  # fmt: skip
        y = _norm(dtype=self.dtype, name="mlp_norm")(x)
        y = nn.gelu(dense(4 * width, name="up")(y), approximate=False)
        return x + dense(width, name="down")(y)


def _attend(kept: Array, query: Array, key: Array, value: Array, **_: Any) -> Array:
    return attention_among_kept(query, key, value, kept)


class KeepScores(nn.Module):
    """log P(keep) and log P(drop) of each token (DynamicViT's predictor, from memory).

    Of the tokens after a LayerNorm and a dense layer with GELU, one half of the channels stays and
    the other is averaged over the kept tokens; three dense layers follow, with GELU between them.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], kept: Float[Array, "b t"]
    ) -> Float[Array, "b t 2"]:
        """Log-probabilities, in float32 or wider."""
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_xavier, dtype=self.dtype)
        x = nn.gelu(dense(width, name="in")(_norm(dtype=self.dtype, name="norm")(x)), False)
        own, shared = jnp.split(x, 2, axis=-1)
        # Of an image all of whose tokens are dropped the mean is 0.
        share = (kept / jnp.maximum(kept.sum(-1, keepdims=True), 1)).astype(x.dtype)
        shared = jnp.einsum("bt,btd->bd", share, shared)[:, None]
        x = jnp.concatenate([own, jnp.broadcast_to(shared, own.shape)], axis=-1)
        x = nn.gelu(dense(width // 2, name="middle1")(x), False)
        x = nn.gelu(dense(width // 4, name="middle2")(x), False)
        return jax.nn.log_softmax(dense(2, name="out")(x).astype(float32_or_wider(x.dtype)))


class ViT(nn.Module):
    """Patches, a class token and positions, pre-norm blocks "block0", ..., "norm", then "head".

    Features: one stage "blocks" of each block's tokens [b, 1 + patches, width], with the class
    token first. CKA compares them flattened, as it does images. Dropped patches are 0 there.

    With `scan` the blocks are one module "block" whose arrays have the block as their first axis
    ([depth, ...]; `stacked` tells rules): the same network, of which one block is compiled.

    With `keep_rates` it is a DynamicViT: patches are dropped before some blocks, equally many
    blocks apart, by `KeepScores` "keep0", "keep1", ... (their form, places and the weight of the
    loss are from memory). In training the decisions are random (`sampled_keep`), so `apply` needs
    rngs={"gumbel": key}, and "losses" has `keep_loss` times the mean of `keep_rate_loss` over the
    stages, to be added to the loss. In inference the patches of the highest scores stay: each rate
    times the number of all patches, rounded down.

    Args:
      size: "tiny" (DeiT-Tiny), "small", "base", "small32" for small images, or "micro".
      patch: side of a patch in pixels, which must divide the image's.
      remat: keep each block's input alone for the gradient.
      scan: compile one block for all, by `nn.scan`. Compile time then grows little with depth; on a
        CPU that pays beyond some 20 blocks, and steps take longer.
      keep_rates: shares of all patches that are left after each stage of dropping, falling, such as
        (0.7, 0.49, 0.343), DynamicViT's; (): no token is dropped.
      keep_by: how inference ranks: "score", or "score-cka" for the CKA-SR paper's score'_i, over
        the channels of each image's patches, with the log-probability of keeping as the score.
      keep_loss: the weight of the keep rates in the loss.
      remove: False leaves dropped patches in the arrays in inference too, masked as in training.

    Raises:
      ValueError: an unknown size or keep_by; patches that do not divide the image; a negative
        keep_loss; keep_rates that do not fall, are not in (0, 1), or have as many stages as there
        are blocks; keep_rates with scan; no "gumbel" key.
    """

    num_classes: int
    size: str = "tiny"
    patch: int = 16
    remat: bool = False
    scan: bool = False
    keep_rates: tuple[float, ...] = ()
    keep_by: KeepBy = "score"
    keep_loss: float = 2.0
    remove: bool = True
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r} is unknown: use {', '.join(map(repr, SIZES))}.")
        if self.patch < 1:
            raise ValueError(f"patch={self.patch}: expected 1 pixel or more, such as 4 or 16.")
        if self.keep_by not in ("score", "score-cka"):
            raise ValueError(unknown("keep_by", self.keep_by, ("score", "score-cka")))
        if not (isinstance(self.keep_loss, int | float) and 0 <= self.keep_loss < math.inf):
            raise ValueError(f"keep_loss={self.keep_loss!r}: expected a number of 0 or more.")
        depth = SIZES[self.size][1]
        if not isinstance(self.keep_rates, tuple | list) or not all(
            isinstance(rate, int | float) for rate in self.keep_rates
        ):
            raise ValueError(f"keep_rates={self.keep_rates!r}: expected numbers, such as (0.7,).")
        rates = tuple(self.keep_rates)
        falling = all(0 < late < early for early, late in itertools.pairwise((1.0, *rates)))
        if not falling or len(rates) >= depth:
            raise ValueError(
                f"keep_rates={rates}: expected falling shares between 0 and 1, fewer than {depth} "
                f"of them for {depth} blocks, such as (0.7, 0.49, 0.343)."
            )
        if rates and self.scan:
            raise ValueError(
                f"keep_rates={rates} drops tokens between blocks, and scan=True makes one loop of "
                "all blocks: leave one of them out."
            )
        super().__post_init__()

    @property
    def stacked(self) -> dict[str, int]:
        """{path pattern: leading axes that count layers}, for the rules' option `stacked`."""
        return {"block": 1} if self.scan else {}

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits of the class token; `train` matters with `keep_rates` alone."""
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
        block = partial(rematerialized(TransformerBlock, self.remat), heads=heads, dtype=self.dtype)
        if self.scan:
            return self._logits(self._scanned(block(name="block"), x, depth, train))
        there, losses = _There(None, None), []
        patches, stages = x.shape[1] - 1, len(self.keep_rates)
        starts = [stage * depth // (stages + 1) for stage in range(1, stages + 1)]
        for i in range(depth):
            if i in starts:
                x, there, rate_loss = self._dropped(x, there, starts.index(i), patches, train)
                losses.append(rate_loss)
            x = block(name=f"block{i}")(x, train, there.kept)
            sow_feature(self, "blocks", _in_place(x, there, patches))
        if losses and train and not self.is_initializing():
            self.sow("losses", "keep_rates", self.keep_loss * jnp.mean(jnp.stack(losses)))
        return self._logits(x)

    def _logits(self, x: Array) -> Array:
        x = _norm(dtype=self.dtype, name="norm")(x)[:, 0]
        return at_least_float32(nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x))

    def _scanned(self, block: Any, x: Array, depth: int, train: bool) -> Array:
        def body(block: Any, x: Array, _: None) -> tuple[Array, Array]:
            x = block(x, train, None)
            return x, x

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)
        x, after = scan(block, x, None)
        for feature in after:
            sow_feature(self, "blocks", feature)
        return x

    def _dropped(
        self, x: Array, there: "_There", stage: int, patches: int, train: bool
    ) -> tuple[Array, "_There", Array]:
        """(tokens, which of them are there, loss of the rate) after a stage."""
        kept = (
            jnp.ones(x.shape[:2], float32_or_wider(x.dtype)) if there.kept is None else there.kept
        )
        kept = kept[:, 1:]  # of the patches; the class token always stays
        scores = KeepScores(self.dtype, name=f"keep{stage}")(x[:, 1:], kept)
        rate = self.keep_rates[stage]
        if train and not self.is_initializing():
            if not self.has_rng("gumbel"):
                raise ValueError(
                    "keep_rates drops random tokens in training: pass "
                    "rngs={'gumbel': jax.random.key(step)} to apply."
                )
            new = kept * sampled_keep(scores, self.make_rng("gumbel"))
            return x, _There(_with_class_token(new), None), keep_rate_loss(new, rate)
        ranking = scores[..., 0]
        if self.keep_by == "score-cka":
            ranking = ranking - cka_with_other_tokens(x[:, 1:], kept)
        places = top_tokens(ranking, kept_count(rate, patches), kept)
        nothing = jnp.zeros(())
        if self.remove:
            x = jnp.concatenate([x[:, :1], gather_tokens(x[:, 1:], places)], axis=1)
            if there.places is not None:  # of what was left, in the image
                places = jnp.take_along_axis(there.places, places, axis=1)
            return x, _There(None, places), nothing
        new = jax.nn.one_hot(places, kept.shape[1], dtype=kept.dtype).sum(1)
        return x, _There(_with_class_token(new), None), nothing


class _There(NamedTuple):
    """Which tokens are there: `kept`, 1 or 0 for each of them, or the `places` of the patches left.

    Both are None where all are.
    """

    kept: Array | None
    places: Array | None


def _in_place(x: Array, there: _There, patches: int) -> Array:
    """[b, 1 + patches, d], the tokens where they are in the image, with 0 for dropped ones."""
    if there.kept is not None:
        return x * there.kept.astype(x.dtype)[..., None]
    if there.places is None:
        return x
    whole = jnp.zeros((x.shape[0], patches, x.shape[2]), x.dtype)
    whole = jax.vmap(lambda image, at, left: image.at[at].set(left))(whole, there.places, x[:, 1:])
    return jnp.concatenate([x[:, :1], whole], axis=1)


def _with_class_token(kept: Array) -> Array:
    return jnp.pad(kept, ((0, 0), (1, 0)), constant_values=1)


def _divisor(height: int, width: int) -> int:
    """The largest side of a patch, up to a quarter of the image, that divides both."""
    return max(
        p for p in range(1, max(2, min(height, width) // 4 + 1)) if not (height % p or width % p)
    )
