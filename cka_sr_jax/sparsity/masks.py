"""Masks: pytrees like the parameters, with a bool array at each leaf that is pruned.

Leaves that stay dense hold `optax.MaskedNode()`, a pytree without leaves, so masks pass through
jit, pmap and checkpoints as ordinary state. Densities are counted on masks and never on
`params != 0`: a kept weight may be 0.
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
    """`function(mask, leaf, *rest)` at each masked leaf of `tree`; dense leaves as they are."""

    def at_leaf(leaf: Any, mask: Any, *others: Any) -> Any:
        return leaf if is_dense(mask) else function(mask, leaf, *others)

    # is_leaf, since optimizer states may hold MaskedNode too (optax.masked).
    return jax.tree.map(at_leaf, tree, masks, *rest, is_leaf=is_dense)


def check_masks(params: Params, masks: Masks) -> dict[str, Any]:
    """{path: mask, or `optax.MaskedNode()` where dense} of all parameters.

    Raises:
      ValueError: the masks lack the structure or the shapes of the parameters.
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
                f"{np.shape(leaf)}: pass a bool array of the parameter's shape."
            )
    return {path: mask for (path, _), mask in zip(leaves, entries, strict=True)}


def apply_masks(params: Params, masks: Masks) -> Params:
    """`params` with exactly 0 wherever the mask is False.

    >>> masks = {"w": jnp.array([True, False]), "b": optax.MaskedNode()}
    >>> masked = apply_masks({"w": jnp.array([3.0, 4.0]), "b": jnp.array([5.0])}, masks)
    >>> masked["w"].tolist(), masked["b"].tolist()
    ([3.0, 0.0], [5.0])

    Raises:
      ValueError: the masks lack the structure or the shapes of the parameters.
    """
    check_masks(params, masks)
    return map_masked(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)


def rescale_kept(params: Params, masks: Masks) -> Params:
    """`params` masked, with each output unit's kept weights scaled to the norm that all had.

      w_kept ||w|| / ||w_kept||,   norms over the weights into a unit: all axes but the last

    A unit's output then varies as in the dense network. Deep networks without normalization need
    this at low densities, where the signal otherwise fades layer by layer. With random masks the
    factor is about 1 / sqrt(density of the unit) (Evci et al. 2022, "Gradient Flow in Sparse Neural
    Networks and How Lottery Tickets Win", arXiv 2010.03533); masks that keep large weights, such as
    SNIP's, need less.

    >>> scaled = rescale_kept({"w": jnp.ones((4, 1))}, {"w": jnp.array([[True]] + [[False]] * 3)})
    >>> scaled["w"].ravel().tolist()
    [2.0, 0.0, 0.0, 0.0]

    Raises:
      ValueError: the masks lack the structure or the shapes of the parameters.
    """
    check_masks(params, masks)

    def at_leaf(mask: Any, leaf: Any) -> Array:  # of NumPy or JAX
        inputs = tuple(range(mask.ndim - 1))
        squares = jnp.square(leaf.astype(jnp.float32))
        whole = jnp.sum(squares, axis=inputs, keepdims=True)
        kept = jnp.sum(jnp.where(mask, squares, 0), axis=inputs, keepdims=True)
        # A unit that keeps no weight is 0 whatever the factor.
        factor = jnp.sqrt(whole / jnp.where(kept > 0, kept, 1)).astype(leaf.dtype)
        return jnp.where(mask, leaf * factor, 0)

    return map_masked(at_leaf, masks, params)


def density(masks: Masks) -> Float[Array, ""]:
    """Kept weights / all weights of the masked leaves; 1 where nothing is masked.

    >>> float(density({"w": jnp.array([True, False]), "b": optax.MaskedNode()}))
    0.5
    """
    leaves = jax.tree.leaves(masks)
    if not leaves:
        return jnp.ones(())
    kept = jnp.stack([jnp.sum(mask, dtype=jnp.float32) for mask in leaves])
    return jnp.sum(kept) / float(sum(mask.size for mask in leaves))


def epsilon_sparsity(
    params: Params, epsilon: float, exclude: Sequence[str] = ()
) -> Float[Array, ""]:
    """Share of the weights that a rule may prune with |w| < `epsilon`, pruned ones included.

    Theorem 1 of the CKA-SR paper (appendix) is on this share: weights far below the others act as
    zeros do.

    >>> float(epsilon_sparsity({"kernel": jnp.array([[0.0, 0.5], [1e-4, 1.0]])}, 1e-3))
    0.5

    Args:
      epsilon: above 0, for example 1e-3.
      exclude: path patterns (`sparsity.matches`) of parameters to leave out.

    Raises:
      ValueError: epsilon not positive; no weight of rank 2 or more; a pattern that matches nothing.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} is not positive: try 1e-3.")
    leaves = maskable_leaves(params, exclude).values()
    small = [jnp.sum(jnp.abs(leaf) < epsilon, dtype=jnp.float32) for leaf in leaves]
    return sum(small, jnp.zeros(())) / float(sum(leaf.size for leaf in leaves))


def churn(before: Masks, after: Masks) -> Float[Array, ""]:
    """How much of the masks changed: |before xor after| / (|before| + |after|), |.| a count.

    Where as many weights grow as are dropped, this is the share of new ones: 1 where no old weight
    stays, 0 where none changes or nothing is masked.

    >>> before, after = jnp.array([True, True, False]), jnp.array([True, False, True])
    >>> float(churn({"w": before}, {"w": after}))
    0.5
    """
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    changed = [jnp.sum(a ^ b, dtype=jnp.float32) for a, b in pairs]
    kept = [jnp.sum(a, dtype=jnp.float32) + jnp.sum(b, dtype=jnp.float32) for a, b in pairs]
    return jnp.asarray(sum(changed) / jnp.maximum(sum(kept), 1), jnp.float32)


def explored(so_far: Masks, masks: Masks) -> Masks:
    """Which weights were ever kept: the union over time. Start with the masks of step 0.

    Its `density` is the exploration rate R_s of in-time over-parametrization (ITOP; Liu et al.
    2021, arXiv 2102.02887): the share of weights that were active at least once.
    """
    return jax.tree.map(jnp.logical_or, so_far, masks)


def maskable_leaves(params: Params, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """{path: leaf} of the leaves that a rule prunes: those of rank 2 or more, less `exclude`.

    >>> list(maskable_leaves({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}))
    ['kernel']

    Args:
      exclude: path patterns (`sparsity.matches`) of leaves that stay dense.

    Raises:
      ValueError: no leaf remains; a pattern that matches nothing.
    """
    if isinstance(exclude, str):
        exclude = (exclude,)
    leaves = {path: leaf for path, leaf in leaf_paths(params) if jnp.ndim(leaf) >= 2}
    for pattern in exclude:
        excluded = [path for path in leaves if matches(pattern, path)]
        if not excluded:
            raise ValueError(
                f"exclude pattern {pattern!r} matches no parameter of rank 2 or more: use a path "
                f"such as {', '.join(leaves) or 'none'}."
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
    """The mask tree of `params` with `masks[path]` at these leaves and the others dense.

    >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
    >>> masks_from_paths(params, {"kernel": jnp.array([[True, False]])})["bias"]
    MaskedNode()
    """
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
