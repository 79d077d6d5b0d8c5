"""Gradual pruning: from dense, or nearly dense, to the target along a cubic schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density, counts_of
from cka_sr_jax.sparsity.layers import Axes, Finder, Layer, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, Params, masks_from_paths
from cka_sr_jax.sparsity.per_layer import over_stack
from cka_sr_jax.sparsity.random_places import layer_keys
from cka_sr_jax.sparsity.replacement import Replacement, replace_share
from cka_sr_jax.sparsity.rule import Change, Distributed, Rule, check_prunes, map_layers
from cka_sr_jax.sparsity.schedules import (
    Schedule,
    check_steps,
    cubic_counts,
    drop_schedule,
    periodic,
)
from cka_sr_jax.sparsity.scores import Score, get_score
from cka_sr_jax.sparsity.selection import top_k_mask, top_k_masks, wide_counts
from cka_sr_jax.sparsity.starts import start_counts, start_full, start_masks


def gmp(
    density: float,
    distribution: Distributed = "global",
    *,
    end_step: int,
    start_step: int = 0,
    update_every: int = 100,
    drop: str | Score = "magnitude",
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """Gradual magnitude pruning (GMP; Zhu & Gupta 2017, arXiv 1710.01878; Gale et al. 2019).

    Starts dense. The update at step t keeps, of all N weights, the

      n_t = n_f + (N - n_f) (1 - (t - start_step) / (end_step - start_step))^3,   n_f = density N,

    with the highest drop score. All layers are ranked together; with a distribution each layer is
    ranked alone, with its own N and n_f. Pruned weights never return.

    With end_step = start_step it prunes once, at that step (one-shot pruning). Ranking all layers
    together may empty a layer at very low densities; a distribution does not.

    >>> import optax
    >>> from cka_sr_jax.sparsity import gmp, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), gmp(density=0.05, end_step=7500))
    >>> one_shot = gmp(density=0.05, start_step=5000, end_step=5000)

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: "global" ranks all layers together. Others set the layers' final densities:
        "uniform", "uniform_plus", "er", "erk", "erk_plus"; a mapping from path patterns to
        densities, which replaces `density`; or a function
        `({path: shape}, density) -> {path: density}`.
      start_step: first step, counted from 0, that may prune.
      end_step: step of the final density; no later step changes the masks. Three quarters of the
        run is a sensible value: 7500 of 10,000 steps. It must come before the run's last step, so
        that the pruned network is trained.
      update_every: steps from one pruning to the next.
      drop: score of the weights in the mask; the lowest are pruned. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of full ones, as `static` takes them.

    Raises:
      ValueError: a density, step or name that cannot work; at `init`, an unknown distribution or a
        pattern that matches nothing.
    """
    check_density(density)
    steps = {"start_step": start_step, "end_step": end_step, "update_every": update_every}
    check_steps(**steps, one_shot=True)
    score = get_score(drop)

    find = finder(include, exclude, stacked, input_axes)

    def init(key: Array, params: Params) -> Masks:
        if distribution != "global":
            # An unknown name is an error right away.
            counts_of(find(params), density, distribution)
        return start_full(find, start)(key, params)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        layers = masked_layers(find, params, masks)
        if distribution == "global":
            size = _total(layers)
            with wide_counts(size):
                count = cubic_counts(size, _global_count(density, size), **steps)(step)
            return prune_globally(key, layers, masks, params, grads, count, score)
        final = counts_of(layers, density, distribution)
        sizes = {path: layer.size for path, layer in layers.items()}
        counts = scheduled(sizes, final, lambda *ends: cubic_counts(*ends, **steps)(step))

        def at_layer(
            layer: Layer, key: Array, mask: Array, param: Array, grad: Array, count: Array
        ) -> Array:
            return top_k_mask(score(key, mask, param, grad), count, where=mask)

        found = map_layers(at_layer, key, layers, masks, params, grads, counts)
        return masks_from_paths(params, found)

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
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """GraNet, gradual pruning with regrowth (Liu et al. 2021, arXiv 2106.10404).

    Starts from random masks of `initial_density`. The update at step t

    1. prunes all layers together to the n_t weights with the highest drop score, where n_t follows
       the schedule of `gmp` from the initial count to density * N;
    2. drops, of the n weights that a layer then has, the floor(f(t) n) with the lowest drop score,
       and grows as many with the highest grow score.

    The total after each update is n_t. A weight that is cut and grown in one update starts anew at
    0, with empty slots, as in the authors' code.

    >>> import optax
    >>> from cka_sr_jax.sparsity import granet, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), granet(density=0.05, end_step=7500))

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the initial density: "uniform", "uniform_plus", "er",
        "erk", "erk_plus"; a mapping from path patterns to densities, which replaces
        `initial_density`; or a function `({path: shape}, density) -> {path: density}`.
      end_step: last step, counted from 0, that may change the masks; f ends there. Three quarters
        of the run is a sensible value: 7500 of 10,000 steps. It must come before the run's last
        step, so that the weights it grows are trained.
      initial_density: of the initial masks, in [density, 1]; 1 starts dense.
      start_step: first step that may change the masks.
      prune_end_step: step of the final density, at most `end_step`; after it the masks change by
        drop and growth alone. None: `end_step`.
      update_every: steps from one change of the masks to the next.
      drop_fraction: share of its weights that a layer replaces at first, f(0), in (0, 1); or f
        itself, a traceable function of the step, whose values are clipped to [0, 1].
      final_drop_fraction: f(end_step), in [0, drop_fraction]. A constant schedule or an f of your
        own does not use it.
      schedule: course of f between the two: "cosine", "linear" or "constant".
      drop: score of the weights in the mask; the lowest are dropped. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      grow: score of the weights outside the mask, likewise; the highest are grown.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of random ones, as `static` takes them;
        `initial_density` and `distribution` are then unused.

    Raises:
      ValueError: a density, fraction, step or name that cannot work; at `init`, an unknown
        distribution or a pattern that matches nothing.
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
    find = finder(include, exclude, stacked, input_axes)
    regenerate = replace_share(Replacement(find, share, score, get_score(grow), restart=True))
    initial_counts = start_counts(find, initial_density, distribution, start)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks | Change:
        layers = masked_layers(find, params, masks)
        size = _total(layers)
        with wide_counts(size):
            initial = _sum(initial_counts(params))
            final = min(initial, _global_count(density, size))
            count = cubic_counts(initial, final, **steps)(step)
        prune_key, regenerate_key = jax.random.split(key)
        pruned = prune_globally(prune_key, layers, masks, params, grads, count, score)
        return regenerate(regenerate_key, step, pruned, params, grads)

    return Rule(
        init=start_masks(find, initial_density, distribution, start),
        update=update,
        due=periodic(update_every, end_step, start_step, also=prune_end),
    )


def prune_globally(
    key: Array,
    layers: Mapping[str, Layer],
    masks: Masks,
    params: Params,
    grads: Params,
    count: Int[Array, ""],
    drop: Score,
) -> Masks:
    """The `count` weights of the masks with the highest drop score, all layers ranked together."""
    values, slopes, where = (dict(leaf_paths(tree)) for tree in (params, grads, masks))
    scores = {
        path: over_stack(drop, layer.stack)(
            layer_keys(key, path, layer), where[path], values[path], slopes[path]
        )
        for path, layer in layers.items()
    }
    return masks_from_paths(params, top_k_masks(scores, count, where=where))


def masked_layers(find: Finder, params: Params, masks: Masks) -> dict[str, Layer]:
    """The layers of a rule that these masks prune.

    Raises:
      ValueError: masks of a parameter that the rule keeps dense.
    """
    layers = find(params)
    check_prunes(layers, masks)
    return {path: layers[path] for path, _ in leaf_paths(masks)}


def scheduled(
    initial: Mapping[str, int],
    final: Mapping[str, np.ndarray],
    count: Callable[[int, int], Int[Array, ""]],
) -> dict[str, Any]:
    """{path: count(initial, final) of each layer, an array of the stack's shape}."""
    counts = {}
    for path, ends in final.items():
        with wide_counts(initial[path]):
            of_end = {end: count(initial[path], end) for end in set(ends.ravel().tolist())}
            counts[path] = jnp.stack([of_end[end] for end in ends.ravel().tolist()])
            counts[path] = counts[path].reshape(ends.shape)
    return counts


def _global_count(density: float, size: int) -> int:
    return max(1, round(density * size))


def _total(layers: Mapping[str, Layer]) -> int:
    return sum(layer.number * layer.size for layer in layers.values())


def _sum(counts: Mapping[str, Any]) -> int:
    """How many weights these are together, as a number: masks that are given are not traced."""
    return sum(int(np.sum(np.asarray(count), dtype=np.int64)) for count in counts.values())
