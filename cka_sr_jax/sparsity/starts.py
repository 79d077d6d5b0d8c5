"""The first masks of a rule: given ones, all weights, or a distribution at random places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density, counts_of
from cka_sr_jax.sparsity.layers import Finder, Layer
from cka_sr_jax.sparsity.masks import Masks, Params, all_kept, masks_from_paths
from cka_sr_jax.sparsity.per_layer import count_layers
from cka_sr_jax.sparsity.random_places import like, random_places
from cka_sr_jax.sparsity.rule import Distributed, check_prunes


def given_masks(params: Params, masks: Masks) -> Masks:
    """The mask tree of `params` with these masks; arguments and errors as for `static`."""
    leaves = dict(leaf_paths(params))
    given = {path: _array(mask) for path, mask in leaf_paths(masks)}
    for path, mask in given.items():
        if path not in leaves:
            raise ValueError(
                f"the masks have {path}, which the parameters lack: pass masks of these parameters "
                f"({', '.join(leaves) or 'none'})."
            )
        if np.shape(mask) != np.shape(leaves[path]):
            raise ValueError(
                f"the mask of {path} has shape {np.shape(mask)} and the parameter "
                f"{np.shape(leaves[path])}: pass a bool array of the parameter's shape."
            )
        known = not isinstance(mask, jax.core.Tracer) and mask.dtype != bool
        if known and not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"the mask of {path} has values other than 0 and 1: pass masks, not scores or "
                "weights."
            )
    # Copies, which a step that donates its state may overwrite.
    bools = {path: like(jnp.array(mask, bool), leaves[path]) for path, mask in given.items()}
    return masks_from_paths(params, bools)


def _array(mask: Any) -> Any:
    return mask if isinstance(mask, jax.Array) else np.asarray(mask)


def given_start(params: Params, layers: Mapping[str, Layer], start: Masks) -> Masks:
    """These masks as the first of a rule.

    Raises:
      ValueError: as `static`; masks of a parameter that the rule keeps dense.
    """
    masks = given_masks(params, start)
    check_prunes(layers, masks)
    return masks


def start_full(find: Finder, start: Masks | None) -> Callable[[Array, Params], Masks]:
    """A rule's `init` that keeps all weights, or the masks of `start`."""

    def init(key: Array, params: Params) -> Masks:
        layers = find(params)
        return all_kept(params, layers) if start is None else given_start(params, layers, start)

    return init


def start_counts(
    find: Finder, density: float, distribution: Distributed, start: Masks | None = None
) -> Callable[[Params], Mapping[str, Any]]:
    """`(params) -> {path: weights of each layer}`: the distribution's, or those of `start`."""

    def counts(params: Params) -> Mapping[str, Any]:
        layers = find(params)
        if start is None:
            return counts_of(layers, density, distribution)
        with jax.ensure_compile_time_eval():  # masks that are given are known
            masks = dict(leaf_paths(given_masks(params, start)))
            return {path: count_layers(layers[path], mask) for path, mask in masks.items()}

    return counts


def start_masks(
    find: Finder, density: float, distribution: Distributed, start: Masks | None = None
) -> Callable[[Array, Params], Masks]:
    """A rule's `init`: the distribution's count of each layer, exactly, at random places.

    Args:
      start: masks to start from in place of random ones.

    Raises:
      ValueError: density outside (0, 1]; at `init`, an unknown distribution or pattern, or masks
        that do not fit.
    """
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        layers = find(params)
        if start is None:
            return random_places(key, params, layers, counts_of(layers, density, distribution))
        return given_start(params, layers, start)

    return init
