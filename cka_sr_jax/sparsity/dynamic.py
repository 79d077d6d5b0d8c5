"""Dynamic sparse training: drop some weights of a layer and grow as many, every so often.

The rules differ in four choices: the layer-wise distribution of the random initial masks, the
schedule of the drop fraction, the score to drop by and the score to grow by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cka_sr_jax.sparsity.distributions import layer_counts
from cka_sr_jax.sparsity.fixed import random_start
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    mask_shapes,
    masks_from_paths,
)
from cka_sr_jax.sparsity.rule import Distributed, Rule, Update, map_layers
from cka_sr_jax.sparsity.schedules import Schedule, drop_schedule, periodic
from cka_sr_jax.sparsity.scores import Score, get_score, magnitude_and_gradient
from cka_sr_jax.sparsity.selection import top_k_mask


def sparse_evolutionary(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    grow: str | Score = "random",
    exclude: Sequence[str] = (),
) -> Rule:
    """Sparse Evolutionary Training (Mocanu et al. 2018): drop by |w|, grow at random.

    At each update every layer drops floor(f(t) n) of its n weights, those with the lowest drop
    score, and grows as many among all its pruned ones, those with the highest grow score. A weight
    that is dropped and grown in the same update keeps its value; the others start at 0.

    ITOP (Liu et al. 2021) is `sparse_evolutionary` or `rigl` with a long `update_every` (1500 and
    4000 steps at batch 128), `drop_fraction=0.5` and `final_drop_fraction=0.005`.

    Args:
      density, distribution, exclude: as for `rst`.
      end_step: last step that may change the masks; also the length of the schedule.
      update_every: steps between updates.
      drop_fraction: f(0), or a function of the step, traced, to use as f; clipped to [0, 1].
      final_drop_fraction: f(end_step), unless f is constant or a function of yours.
      schedule: "cosine", "linear" or "constant".
      drop, grow: a name in SCORES or a function (key, mask, param, grad) -> array.

    Raises:
      ValueError: a density, fraction or schedule that cannot work; an unknown name.
    """
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    return Rule(
        init=random_start(density, distribution, exclude),
        update=replace_share(share, get_score(drop), get_score(grow)),
        due=periodic(update_every, end_step),
    )


def rigl(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    grow: str | Score = "gradient",
    exclude: Sequence[str] = (),
) -> Rule:
    """RigL (Evci et al. 2020): drop by |w|, grow by the dense gradient |dL/dw|.

    Arguments, update and errors as for `sparse_evolutionary`.
    """
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    return Rule(
        init=random_start(density, distribution, exclude),
        update=replace_share(share, get_score(drop), get_score(grow)),
        due=periodic(update_every, end_step),
    )


def snfs(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    momentum: float = 0.9,
    exclude: Sequence[str] = (),
) -> Rule:
    """Sparse networks from scratch (Dettmers & Zettlemoyer 2019): grow by |momentum|.

    The momentum is an exponential average of the dense gradients, which `sparsify` keeps at every
    step: the optimizer's own is 0 at pruned weights. As in RigL's comparison each layer keeps its
    count; the paper also moves weights between layers.

    Args:
      momentum: decay of the average, in (0, 1).
      density, ...: the others, the update and the errors as for `sparse_evolutionary`.
    """
    if not 0 < momentum < 1:
        raise ValueError(
            f"momentum={momentum} is not in (0, 1): it is the decay of the average, such as 0.9."
        )
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    return Rule(
        init=random_start(density, distribution, exclude),
        update=replace_share(share, get_score(drop), get_score("gradient")),
        due=periodic(update_every, end_step),
        gradient_decay=momentum,
    )


def mest(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    gradient_weight: float = 0.0,
    grow: str | Score = "random",
    soft: bool = False,
    exclude: Sequence[str] = (),
) -> Rule:
    """MEST (Yuan et al. 2021): drop by |w| + gradient_weight * |dL/dw|, grow at random.

    Elastic mutation (EM) drops first and then grows back to the layer's count. With `soft`
    (EM&S, a soft memory bound) it grows first: between updates a layer holds floor(f(t) n) weights
    more than its n, and the next update, which knows the new weights' worth, drops down to n
    before it grows again. The update at `end_step` only drops.

    Arguments and errors as for `sparse_evolutionary`.
    """
    if not gradient_weight >= 0:
        raise ValueError(
            f"gradient_weight={gradient_weight} is not a number of 0 or more, such as 0.1."
        )
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    drop = magnitude_and_gradient(gradient_weight) if gradient_weight else get_score("magnitude")
    if soft:
        update = grow_first(share, drop, get_score(grow), end_step, density, distribution)
    else:
        update = replace_share(share, drop, get_score(grow))
    return Rule(
        init=random_start(density, distribution, exclude),
        update=update,
        due=periodic(update_every, end_step),
    )


def replace_share(share: Schedule, drop: Score, grow: Score) -> Update:
    """An `update` that replaces floor(share(step) n) of the n weights of each layer."""
    replace = drop_and_grow(drop, grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        fraction = share(step)

        def layer(path: str, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            count = jnp.sum(mask, dtype=jnp.int32)
            # Clipped, for a schedule of the user's own may leave [0, 1].
            moved = jnp.clip(jnp.floor(fraction * count).astype(jnp.int32), 0, count)
            return replace(key, mask, param, grad, count - moved, moved)

        return masks_from_paths(params, map_layers(layer, key, masks, params, grads))

    return update


def grow_first(
    share: Schedule,
    drop: Score,
    grow: Score,
    end_step: int,
    density: float,
    distribution: Distributed,
) -> Update:
    """An `update` that drops to each layer's n weights, then grows floor(share(step) n) more."""
    replace = drop_and_grow(drop, grow)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        targets = layer_counts(mask_shapes(masks), density, distribution)
        fraction = jnp.where(step >= end_step, 0, share(step))

        def layer(path: str, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            extra = jnp.maximum(jnp.floor(fraction * targets[path]).astype(jnp.int32), 0)
            return replace(key, mask, param, grad, targets[path], extra)

        return masks_from_paths(params, map_layers(layer, key, masks, params, grads))

    return update


def drop_and_grow(drop: Score, grow: Score) -> Callable[..., Bool[Array, "..."]]:
    """`(key, mask, param, grad, keep, add) -> mask` of one layer, for a drop and a grow score.

    It keeps the `keep` weights of the mask with the highest drop score, and adds the `add` weights
    outside them with the highest grow score. A weight just dropped may grow again at once, as in
    the reference codes.
    """

    def layer(
        key: Array,
        mask: Bool[Array, "..."],
        param: Array,
        grad: Array,
        keep: int | Int[Array, ""],
        add: Int[Array, ""],
    ) -> Bool[Array, "..."]:
        drop_key, grow_key = jax.random.split(key)
        kept = top_k_mask(drop(drop_key, mask, param, grad), keep, where=mask)
        return kept | top_k_mask(grow(grow_key, kept, param, grad), add, where=~kept)

    return layer
