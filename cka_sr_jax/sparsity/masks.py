"""Masks: pytrees shaped like the parameters, with a bool array at each leaf that is pruned.

Leaves that stay dense hold `optax.MaskedNode()`, which is a pytree without leaves, so masks pass
through jit, pmap and checkpoints as ordinary state. Densities are counted on masks, never on
`params != 0`: a kept weight may well be 0.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Masks = Any  # a pytree of bool arrays and optax.MaskedNode
Params = Any


def is_dense(mask: Any) -> bool:
    """Whether this entry of a mask tree stands for a leaf that stays dense."""
    return isinstance(mask, optax.MaskedNode)


def map_masked(function: Callable[..., Any], masks: Masks, tree: Any, *rest: Any) -> Any:
    """`function(mask, leaf, *rest)` at each masked leaf of `tree`; dense leaves stay as is."""

    def at_leaf(leaf: Any, mask: Any, *others: Any) -> Any:
        return leaf if is_dense(mask) else function(mask, leaf, *others)

    # is_leaf: optimiser states may hold MaskedNode themselves (optax.masked).
    return jax.tree.map(at_leaf, tree, masks, *rest, is_leaf=is_dense)


def apply_masks(params: Params, masks: Masks) -> Params:
    """`params` with exactly 0 wherever the mask is False."""
    return map_masked(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)


def rescale_kept(params: Params, masks: Masks) -> Params:
    """`params` masked, and each output unit's kept weights scaled to the norm that all had.

      w_kept * ||w|| / ||w_kept||  over the weights into a unit, the last axis in Flax's kernels.

    A unit's output then varies as in the dense network. Deep networks without normalisation need it
    at low densities, where else the signal fades in every layer. With random masks the factor is
    about 1 / sqrt(the unit's density) (Evci et al. 2022, "Gradient Flow in Sparse Neural
    Networks"); masks that keep large weights, as SNIP's do, need less.
    """

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
    """Share of the weights kept now that were pruned before; 0 where nothing is masked."""
    new = [jnp.sum(b & ~a, dtype=jnp.float32) for a, b in _pairs(before, after)]
    kept = [jnp.sum(mask, dtype=jnp.float32) for mask in jax.tree.leaves(after)]
    return jnp.asarray(sum(new) / jnp.maximum(sum(kept), 1), jnp.float32)


def explored(so_far: Masks, masks: Masks) -> Masks:
    """Which weights were ever kept: the union over time, started with the masks of step 0.

    Its `density` is the exploration rate R_s of in-time over-parametrisation (ITOP, Liu et al.
    2021): the share of weights that were active at least once.
    """
    return jax.tree.map(jnp.logical_or, so_far, masks)


def _pairs(before: Masks, after: Masks) -> list[tuple[Array, Array]]:
    return list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf in the tree's order; paths read "stage1_block0/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(_path_name(path), leaf) for path, leaf in leaves]


def _path_name(path: Sequence[Any]) -> str:
    name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
    return name.removesuffix("/value")  # the array inside an nnx.Variable


def matches(pattern: str, path: str) -> bool:
    """Whether a glob pattern such as "head/kernel" or "stage1*" matches a path or its tail."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


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


def masks_from_paths(params: Params, masks: dict[str, Any]) -> Masks:
    """The mask tree of `params` with `masks[path]` at the named leaves and the rest dense."""
    paths = iter([path for path, _ in leaf_paths(params)])
    return jax.tree.map(lambda _: masks.get(next(paths), optax.MaskedNode()), params)
