"""Masks: pytrees shaped like the parameters, with a bool array at each leaf that is pruned.

Leaves that stay dense hold `optax.MaskedNode()`, which is a pytree without leaves, so masks pass
through jit, pmap and checkpoints as ordinary state. Densities are counted on masks, never on
`params != 0`: a kept weight may well be 0.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from cka_sr_jax._paths import leaf_paths, matches

Masks = Any  # a pytree of bool arrays and optax.MaskedNode
Params = Any


def is_dense(mask: Any) -> bool:
    """Whether this entry of a mask tree stands for a leaf that stays dense."""
    return isinstance(mask, optax.MaskedNode)


def map_masked(function: Callable[..., Any], masks: Masks, tree: Any, *rest: Any) -> Any:
    """`function(mask, leaf, *rest)` at each masked leaf of `tree`; dense leaves stay as is."""

    def at_leaf(leaf: Any, mask: Any, *others: Any) -> Any:
        return leaf if is_dense(mask) else function(mask, leaf, *others)

    # is_leaf: optimizer states may hold MaskedNode themselves (optax.masked).
    return jax.tree.map(at_leaf, tree, masks, *rest, is_leaf=is_dense)


def check_masks(params: Params, masks: Masks) -> dict[str, Any]:
    """{path: mask or optax.MaskedNode()} of all parameters.

    Raises:
      ValueError: the masks do not have the structure and the shapes of the parameters.
    """
    treedef: Any = jax.tree.structure(params)
    try:
        entries = treedef.flatten_up_to(masks)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            "the masks have another structure than the parameters: pass a pytree like the "
            "parameters, with optax.MaskedNode() at each leaf that stays dense."
        ) from None
    leaves = leaf_paths(params)
    for (path, leaf), mask in zip(leaves, entries, strict=True):
        if mask is None:
            raise ValueError(
                f"the mask of {path} is None: put optax.MaskedNode() at each leaf that stays dense."
            )
        if not is_dense(mask) and np.shape(mask) != np.shape(leaf):
            raise ValueError(
                f"the mask of {path} has shape {np.shape(mask)} and the parameter "
                f"{np.shape(leaf)}: masks are bool arrays of their parameter's shape."
            )
    return {path: mask for (path, _), mask in zip(leaves, entries, strict=True)}


def apply_masks(params: Params, masks: Masks) -> Params:
    """`params` with exactly 0 wherever the mask is False.

    Raises:
      ValueError: the masks have another structure than the parameters, or other shapes.
    """
    check_masks(params, masks)
    return map_masked(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)


def rescale_kept(params: Params, masks: Masks) -> Params:
    """`params` masked, and each output unit's kept weights scaled to the norm that all had.

      w_kept * ||w|| / ||w_kept||  over the weights into a unit, the last axis in Flax's kernels.

    A unit's output then varies as in the dense network. Deep networks without normalization need it
    at low densities, where else the signal fades in every layer. With random masks the factor is
    about 1 / sqrt(the unit's density) (Evci et al. 2022, "Gradient Flow in Sparse Neural
    Networks"); masks that keep large weights, as SNIP's do, need less.

    Raises:
      ValueError: as `apply_masks`.
    """
    check_masks(params, masks)

    def at_leaf(mask: Array, leaf: Array) -> Array:
        inputs = tuple(range(mask.ndim - 1))
        squares = jnp.square(leaf.astype(jnp.float32))
        whole = jnp.sum(squares, axis=inputs, keepdims=True)
        kept = jnp.sum(jnp.where(mask, squares, 0), axis=inputs, keepdims=True)
        # A unit that keeps nothing is 0 whatever the factor.
        factor = jnp.sqrt(whole / jnp.where(kept > 0, kept, 1)).astype(leaf.dtype)
        return jnp.where(mask, leaf * factor, 0)

    return map_masked(at_leaf, masks, params)


def density(masks: Masks) -> Float[Array, ""]:
    """Kept weights divided by all weights of the masked leaves; 1 where nothing is masked."""
    leaves = jax.tree.leaves(masks)
    if not leaves:
        return jnp.ones(())
    kept = jnp.stack([jnp.sum(mask, dtype=jnp.float32) for mask in leaves])
    return jnp.sum(kept) / float(sum(mask.size for mask in leaves))


def epsilon_sparsity(
    params: Params, epsilon: float, exclude: Sequence[str] = ()
) -> Float[Array, ""]:
    """Share of the weights of rank 2 or more with |w| < `epsilon`, pruned ones included.

    Of the CKA-SR paper's theorem 1 (appendix): weights far below the others do as much as zeros.

    Args:
      exclude: path patterns of parameters to leave out.

    Raises:
      ValueError: epsilon not positive; no weight of rank 2 or more; a pattern that matches none.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} is not positive: try 1e-3.")
    leaves = maskable_leaves(params, exclude).values()
    small = [jnp.sum(jnp.abs(leaf) < epsilon, dtype=jnp.float32) for leaf in leaves]
    return sum(small, jnp.zeros(())) / float(sum(leaf.size for leaf in leaves))


def churn(before: Masks, after: Masks) -> Float[Array, ""]:
    """How much of the masks changed: |before xor after| / (|before| + |after|), |.| being counts.

    Where as many weights are grown as are dropped this is the share of new ones; 1 where nothing is
    left of the masks before, and 0 where nothing is masked.
    """
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    changed = [jnp.sum(a ^ b, dtype=jnp.float32) for a, b in pairs]
    kept = [jnp.sum(a, dtype=jnp.float32) + jnp.sum(b, dtype=jnp.float32) for a, b in pairs]
    return jnp.asarray(sum(changed) / jnp.maximum(sum(kept), 1), jnp.float32)


def explored(so_far: Masks, masks: Masks) -> Masks:
    """Which weights were ever kept: the union over time, started with the masks of step 0.

    Its `density` is the exploration rate R_s of in-time over-parametrization (ITOP, Liu et al.
    2021): the share of weights that were active at least once.
    """
    return jax.tree.map(jnp.logical_or, so_far, masks)


def maskable_leaves(params: Params, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """path -> leaf for the leaves that a rule prunes: rank >= 2 and not excluded by a pattern.

    Raises:
      ValueError: no leaf is left, or an `exclude` pattern matches none.
    """
    if isinstance(exclude, str):
        exclude = (exclude,)
    leaves = {path: leaf for path, leaf in leaf_paths(params) if jnp.ndim(leaf) >= 2}
    for pattern in exclude:
        excluded = [path for path in leaves if matches(pattern, path)]
        if not excluded:
            raise ValueError(
                f"exclude pattern {pattern!r} matches no parameter of rank 2 or more: "
                f"those left are {', '.join(leaves) or 'none'}."
            )
        for path in excluded:
            del leaves[path]
    if not leaves:
        raise ValueError(
            "no parameter of rank 2 or more is left to prune: pass the model's parameters, and "
            "exclude fewer of them."
        )
    return leaves


def maskable_shapes(params: Params, exclude: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """path -> shape of the leaves that a rule prunes.

    Raises:
      ValueError: as `maskable_leaves`.
    """
    return {path: jnp.shape(leaf) for path, leaf in maskable_leaves(params, exclude).items()}


def mask_shapes(masks: Masks) -> dict[str, tuple[int, ...]]:
    """path -> shape of the masked layers."""
    return {path: mask.shape for path, mask in leaf_paths(masks)}


def masks_from_paths(params: Params, masks: dict[str, Any]) -> Masks:
    """The mask tree of `params` with `masks[path]` at the named leaves and the rest dense."""
    paths = iter([path for path, _ in leaf_paths(params)])
    return jax.tree.map(lambda _: masks.get(next(paths), optax.MaskedNode()), params)


def full_masks(params: Params, exclude: Sequence[str] = ()) -> Masks:
    """Masks that keep every weight of the leaves that a rule prunes.

    Raises:
      ValueError: as `maskable_leaves`.
    """
    shapes = maskable_shapes(params, exclude)
    return masks_from_paths(params, {path: jnp.ones(shape, bool) for path, shape in shapes.items()})


def random_masks(key: Array, params: Params, counts: Mapping[str, int]) -> Masks:
    """Masks with exactly `counts[path]` weights of each named layer, at random places.

    The places in a layer depend on the key and the layer's path, not on the other layers.
    """
    leaves = dict(leaf_paths(params))
    masks = {
        path: random_mask(fold_in_path(key, path), jnp.shape(leaves[path]), count)
        for path, count in counts.items()
    }
    return masks_from_paths(params, masks)


def random_mask(key: Array, shape: tuple[int, ...], count: int) -> Bool[Array, "..."]:
    """A bool array of this shape with exactly `count` True entries at random places."""
    return jax.random.permutation(key, jnp.arange(math.prod(shape)) < count).reshape(shape)


def fold_in_path(key: Array, path: str) -> Array:
    """The key of one leaf: it depends on `key` and the leaf's path, not on the other leaves."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
