"""Gradual pruning: from dense, or nearly, down to the target along a cubic schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jaxtyping import Array, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import Shapes, check_density, layer_counts
from cka_sr_jax.sparsity.dynamic import replace_share
from cka_sr_jax.sparsity.fixed import random_start
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    fold_in_path,
    full_masks,
    mask_shapes,
    maskable_shapes,
    masks_from_paths,
)
from cka_sr_jax.sparsity.rule import Distributed, Rule, map_layers
from cka_sr_jax.sparsity.schedules import (
    Schedule,
    check_steps,
    cubic_counts,
    drop_schedule,
    periodic,
)
from cka_sr_jax.sparsity.scores import Score, get_score
from cka_sr_jax.sparsity.selection import top_k_mask, top_k_masks


def gmp(
    density: float,
    distribution: Distributed = "global",
    *,
    end_step: int,
    start_step: int = 0,
    update_every: int = 100,
    drop: str | Score = "magnitude",
    exclude: Sequence[str] = (),
) -> Rule:
    """Gradual magnitude pruning (Zhu & Gupta 2017; Gale et al. 2019).

    Starts dense. Each update keeps the weights with the highest drop score: of all N weights,

      n_t = n_f + (N - n_f) (1 - (t - start) / (end - start))^3,   n_f = density N,

    ranked over all layers together, or of each layer its own N and n_f. Pruned weights never
    return. With end = start it prunes once, at that step (one-shot pruning). Global ranking may
    empty a layer at very low densities; a distribution does not.

    Args:
      density, exclude: as for `rst`.
      distribution: "global", or as for `rst`: the layers' final densities.
      start_step, end_step: first and last step of the schedule.
      update_every: steps between updates.
      drop: a name in SCORES or a function (key, mask, param, grad) -> array.

    Raises:
      ValueError: a density or schedule that cannot work; an unknown name.
    """
    check_density(density)
    steps = {"start_step": start_step, "end_step": end_step, "update_every": update_every}
    check_steps(**steps, one_shot=True)
    score = get_score(drop)

    def init(key: Array, params: Params) -> Masks:
        shapes = maskable_shapes(params, exclude)
        if distribution != "global":
            layer_counts(shapes, density, distribution)  # an unknown name is an error right away
        return full_masks(params, exclude)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        shapes = mask_shapes(masks)
        if distribution == "global":
            size = _total(shapes)
            count = cubic_counts(size, _global_count(density, size), **steps)(step)
            return prune_globally(key, masks, params, grads, count, score)
        final = layer_counts(shapes, density, distribution)

        def layer(path: str, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            count = cubic_counts(mask.size, final[path], **steps)(step)
            return top_k_mask(score(key, mask, param, grad), count, where=mask)

        return masks_from_paths(params, map_layers(layer, key, masks, params, grads))

    return Rule(init, update, periodic(update_every, end_step, start_step))


def granet(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    initial_density: float = 0.5,
    start_step: int = 0,
    prune_end_step: int | None = None,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.5,
    final_drop_fraction: float = 0.005,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    grow: str | Score = "gradient",
    exclude: Sequence[str] = (),
) -> Rule:
    """GraNet (Liu et al. 2021): gradual pruning with zero-cost neuroregeneration.

    Each update prunes globally to n_t weights as `gmp` does, from those of the initial masks to
    density * N, then drops floor(f(t) n) of the n weights left in each layer by the drop score and
    grows as many by the grow score. The total is n_t after each update.

    Args:
      density, exclude: as for `rst`.
      distribution: layer-wise density of the initial masks.
      end_step: last step that may change the masks.
      initial_density: of the initial masks; 1 starts dense.
      start_step: first step of the schedule.
      prune_end_step: step at which the final density is met; None: `end_step`.
      update_every: steps between updates.
      drop_fraction: f(0), or a function of the step to use as f.
      final_drop_fraction: f(end_step), unless f is constant or a function of yours.
      schedule: "cosine", "linear" or "constant".
      drop, grow: a name in SCORES or a function (key, mask, param, grad) -> array.

    Raises:
      ValueError: a density, fraction or schedule that cannot work; an unknown name.
    """
    check_density(density)
    check_density(initial_density, "initial_density")
    if initial_density < density:
        raise ValueError(
            f"initial_density={initial_density} is below density={density}: GraNet prunes from "
            "the first to the second."
        )
    prune_end = end_step if prune_end_step is None else prune_end_step
    steps = {"start_step": start_step, "end_step": prune_end, "update_every": update_every}
    check_steps(**steps, one_shot=True)
    if prune_end > end_step:
        raise ValueError(
            f"prune_end_step={prune_end} comes after end_step={end_step}, the last step that may "
            "change the masks."
        )
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    score = get_score(drop)
    regenerate = replace_share(share, score, get_score(grow))

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        shapes = mask_shapes(masks)
        initial = sum(layer_counts(shapes, initial_density, distribution).values())
        final = min(initial, _global_count(density, _total(shapes)))
        count = cubic_counts(initial, final, **steps)(step)
        prune_key, regenerate_key = jax.random.split(key)
        pruned = prune_globally(prune_key, masks, params, grads, count, score)
        return regenerate(regenerate_key, step, pruned, params, grads)

    return Rule(
        init=random_start(initial_density, distribution, exclude),
        update=update,
        due=periodic(update_every, end_step, start_step, also=prune_end),
    )


def prune_globally(
    key: Array, masks: Masks, params: Params, grads: Params, count: Int[Array, ""], drop: Score
) -> Masks:
    """The `count` weights of the masks with the highest drop score, all layers ranked together."""
    values, slopes, where = (dict(leaf_paths(tree)) for tree in (params, grads, masks))
    scores = {
        path: drop(fold_in_path(key, path), mask, values[path], slopes[path])
        for path, mask in where.items()
    }
    return masks_from_paths(params, top_k_masks(scores, count, where=where))


def _global_count(density: float, size: int) -> int:
    return max(1, round(density * size))


def _total(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))
