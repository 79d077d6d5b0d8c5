"""Masks: pytrees like the parameters, with a bool array at each leaf that is pruned.

Leaves that stay dense hold `optax.MaskedNode()`, a pytree without leaves, so masks pass through
jit, pmap and checkpoints as ordinary state. Densities are counted on masks and never on
`params != 0`: a kept weight may be 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, describe, finder
from cka_sr_jax.sparsity.selection import count_together, wide_counts

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


def check_masks(params: Params, masks: Masks) -> None:
    """Check that masks are a tree like the parameters.

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
    for (path, leaf), mask in zip(leaf_paths(params), entries, strict=True):
        if mask is None:
            raise ValueError(
                f"the mask of {path} is None: put optax.MaskedNode() at each leaf that stays dense."
            )
        if not is_dense(mask) and np.shape(mask) != np.shape(leaf):
            raise ValueError(
                f"the mask of {path} has shape {np.shape(mask)} and the parameter "
                f"{np.shape(leaf)}: pass a bool array of the parameter's shape."
            )


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


def rescale_kept(
    params: Params,
    masks: Masks,
    *,
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Params:
    """`params` masked, with each output unit's kept weights scaled to the norm that all had.

      w_kept ||w|| / ||w_kept||,   norms over the weights into a unit: taps and inputs

    A unit's output then varies as in the dense network. Deep networks without normalization need
    this at low densities, where the signal otherwise fades layer by layer. With random masks the
    factor is about 1 / sqrt(density of the unit) (Evci et al. 2022, "Gradient Flow in Sparse Neural
    Networks and How Lottery Tickets Win", arXiv 2010.03533); masks that keep large weights, such as
    SNIP's, need less.

    >>> scaled = rescale_kept({"w": jnp.ones((4, 1))}, {"w": jnp.array([[True]] + [[False]] * 3)})
    >>> scaled["w"].ravel().tolist()
    [2.0, 0.0, 0.0, 0.0]

    Args:
      params: pytree.
      masks: like `params`.
      stacked: as for `layers_of`.
      input_axes: as for `layers_of`.

    Raises:
      ValueError: the masks lack the structure or the shapes of the parameters; as `layers_of`.
    """
    check_masks(params, masks)
    found = [path for path, _ in leaf_paths(masks)]
    layers = iter(describe(params, found, stacked=stacked, input_axes=input_axes).values())

    def at_leaf(mask: Any, leaf: Any) -> Array:  # of NumPy or JAX
        layer = next(layers)
        inputs = tuple(axis + layer.stack for axis in layer.fan_in)
        squares = jnp.square(jnp.abs(leaf).astype(jnp.float32))
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
    size = sum(mask.size for mask in jax.tree.leaves(masks))
    return kept_weights(masks) / float(size) if size else jnp.ones((), jnp.float32)


def epsilon_sparsity(
    params: Params,
    epsilon: float,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Float[Array, ""]:
    """Share of the weights that a rule may prune with |w| < `epsilon`, pruned ones included.

    Theorem 1 of the CKA-SR paper (appendix) is on this share: weights far below the others act as
    zeros do.

    >>> float(epsilon_sparsity({"kernel": jnp.array([[0.0, 0.5], [1e-4, 1.0]])}, 1e-3))
    0.5

    Args:
      epsilon: above 0, for example 1e-3.
      include: as for `layers_of`, and so are the next three.

    Raises:
      ValueError: epsilon not positive; as `layers_of`.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} is not positive: try 1e-3.")
    layers = finder(include, exclude, stacked, input_axes)(params)
    leaves = [leaf for path, leaf in leaf_paths(params) if path in layers]
    small = [jnp.sum(jnp.abs(leaf) < epsilon, dtype=jnp.float32) for leaf in leaves]
    return sum(small, jnp.zeros(())) / float(sum(leaf.size for leaf in leaves))


def kept_weights(masks: Masks) -> Float[Array, ""]:
    """How many weights these masks keep, in float32."""
    kept = [jnp.sum(mask, dtype=jnp.float32) for mask in jax.tree.leaves(masks)]
    return jnp.sum(jnp.stack(kept)) if kept else jnp.zeros((), jnp.float32)


def merge_masks(parts: Sequence[Masks]) -> Masks:
    """One tree of masks from several, each with masks of other leaves of the same parameters.

    Raises:
      ValueError: trees of other structures; a leaf with several masks.
    """

    def merge(one: Masks, other: Masks) -> Masks:
        if is_dense(one) or is_dense(other):  # also a whole part of the tree
            return other if is_dense(one) else one
        treedef: Any
        children, treedef = jax.tree.flatten(one, is_leaf=lambda node: node is not one)
        if jax.tree_util.treedef_is_leaf(treedef):
            raise ValueError("two masks of one leaf")
        pairs = zip(children, treedef.flatten_up_to(other), strict=True)
        return jax.tree.unflatten(treedef, [merge(*pair) for pair in pairs])

    try:
        return functools.reduce(merge, parts)
    except ValueError:
        raise ValueError(
            f"the optimizer state holds {len(parts)} sets of masks for the same parameters and "
            "should hold 1: make it with tx = sparsify(optimizer, rule), once."
        ) from None


def churn(before: Masks, after: Masks) -> Float[Array, ""]:
    """How much of the masks changed: |before xor after| / (|before| + |after|), |.| a count.

    Where as many weights grow as are dropped, this is the share of new ones: 1 where no old weight
    stays, 0 where none changes or nothing is masked.

    >>> before, after = jnp.array([True, True, False]), jnp.array([True, False, True])
    >>> float(churn({"w": before}, {"w": after}))
    0.5
    """
    changed = kept = jnp.zeros((), jnp.float32)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        with wide_counts(one.size):
            counts = count_together(one ^ other, one, other)
            moved, *rest = (count.astype(jnp.float32) for count in counts)
        changed, kept = changed + moved, kept + sum(rest)
    return changed / jnp.maximum(kept, 1)


def explored(so_far: Masks, masks: Masks) -> Masks:
    """Which weights were ever kept: the union over time. Start with the masks of step 0.

    Its `density` is the exploration rate R_s of in-time over-parametrization (ITOP; Liu et al.
    2021, arXiv 2102.02887): the share of weights that were active at least once.
    """
    return jax.tree.map(jnp.logical_or, so_far, masks)


def masks_from_paths(params: Params, masks: dict[str, Any]) -> Masks:
    """The mask tree of `params` with `masks[path]` at these leaves and the others dense.

    >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
    >>> masks_from_paths(params, {"kernel": jnp.array([[True, False]])})["bias"]
    MaskedNode()
    """
    paths = iter([path for path, _ in leaf_paths(params)])
    return jax.tree.map(lambda _: masks.get(next(paths), optax.MaskedNode()), params)


def full_masks(
    params: Params,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Masks:
    """Masks that keep every weight of the layers that a rule prunes; arguments as `layers_of`.

    Raises:
      ValueError: as `layers_of`.
    """
    return all_kept(params, finder(include, exclude, stacked, input_axes)(params))


def all_kept(params: Params, layers: Mapping[str, Layer]) -> Masks:
    """Masks that keep every weight of these layers."""
    leaves = dict(leaf_paths(params))
    # Like the parameter, so that the mask has its sharding.
    return masks_from_paths(params, {path: jnp.ones_like(leaves[path], bool) for path in layers})
