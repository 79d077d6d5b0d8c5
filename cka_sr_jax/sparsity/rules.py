"""Sparse-training rules: where the masks come from and how they change.

A rule is a pair of pure functions and a schedule; `sparsify` turns it into an Optax transform.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from cka_sr_jax._errors import unknown
from cka_sr_jax.sparsity.distributions import (
    Distribution,
    check_density,
    layer_counts,
    layer_densities,
)
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    is_dense,
    leaf_paths,
    maskable_leaves,
    masks_from_paths,
)


def _keep(key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params) -> Masks:
    return masks


class Rule(NamedTuple):
    """A sparse-training rule.

    Attributes:
      init: `(key, params) -> masks`, the masks of step 0.
      update: `(key, step, masks, params, grads) -> masks`, run where `due`; `grads` are dense, so
        they also say where a pruned weight would help.
      due: `(step) -> bool`, traced or a plain `False` for masks that never change.
    """

    init: Callable[[Array, Params], Masks]
    update: Callable[[Array, Int[Array, ""], Masks, Params, Params], Masks] = _keep
    due: Callable[[Int[Array, ""]], Bool[Array, ""] | bool] = lambda step: False


def dense() -> Rule:
    """No masks at all: `sparsify` with it trains as the inner optimiser does."""
    return Rule(lambda key, params: masks_from_paths(params, {}))


def static(masks: Masks) -> Rule:
    """Fixed masks from anywhere: pruning at initialisation, a lottery ticket, a file.

    Args:
      masks: pytree like the parameters, with an array of bools (or zeros and ones) at each leaf to
        prune and `optax.MaskedNode()` at each that stays dense.

    Raises:
      ValueError: at `init`, where the masks do not have the parameters' structure and shapes.
    """

    def init(key: Array, params: Params) -> Masks:
        treedef: Any = jax.tree.structure(params)
        try:
            entries = treedef.flatten_up_to(masks)
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                "the masks have another structure than the parameters: pass a pytree like the "
                "parameters, with optax.MaskedNode() at each leaf that stays dense."
            ) from None
        checked = []
        for (path, leaf), mask in zip(leaf_paths(params), entries, strict=True):
            if not is_dense(mask):
                if np.shape(mask) != np.shape(leaf):
                    raise ValueError(
                        f"the mask of {path} has shape {np.shape(mask)} and the parameter "
                        f"{np.shape(leaf)}: masks are bool arrays of their parameter's shape."
                    )
                mask = jnp.asarray(mask, bool)
            checked.append(mask)
        return jax.tree.unflatten(treedef, checked)

    return Rule(init)


def rst(
    density: float,
    distribution: str | Mapping[str, float] | Distribution = "erk",
    *,
    exclude: Sequence[str] = (),
    exact: bool = True,
) -> Rule:
    """Random static masks (Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning").

    Args:
      density: share of weights kept among all that are pruned, in (0, 1].
      distribution: layer-wise density: "uniform", "uniform_plus", "er", "erk", "erk_plus", a
        mapping from path patterns to densities, or a function of `distributions`.
      exclude: path patterns of parameters that stay dense, such as "head/kernel".
      exact: keep exactly round(density * size) weights of each layer, at random places; False
        draws each weight on its own, as the reference code does.

    Raises:
      ValueError: density outside (0, 1]; at `init`, unknown names and patterns.
    """
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        leaves = maskable_leaves(params, exclude)
        shapes = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
        counts = layer_counts(shapes, density, distribution)
        densities = layer_densities(shapes, density, distribution)
        masks = {}
        for path, shape in shapes.items():
            leaf_key = _fold_in_path(key, path)
            if exact:
                masks[path] = random_mask(leaf_key, shape, counts[path])
            else:
                masks[path] = jax.random.bernoulli(leaf_key, densities[path], shape)
        return masks_from_paths(params, masks)

    return Rule(init)


def random_mask(key: Array, shape: tuple[int, ...], count: int) -> Bool[Array, "..."]:
    """A bool array of this shape with exactly `count` True entries at random places."""
    return jax.random.permutation(key, jnp.arange(math.prod(shape)) < count).reshape(shape)


def _fold_in_path(key: Array, path: str) -> Array:
    """A key for one leaf that depends on its path only, not on the other leaves."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


RULES: dict[str, Callable[..., Rule]] = {"dense": dense, "rst": rst, "static": static}


def make_rule(name: str, **options: Any) -> Rule:
    """The rule of this name: `make_rule("rst", density=0.05)` is `rst(density=0.05)`.

    Raises:
      ValueError: an unknown rule; an option that the rule does not have, or one that it misses.
    """
    if name not in RULES:
        raise ValueError(unknown("sparsity rule", name, RULES))
    signature = inspect.signature(RULES[name])
    for option in options:
        if option not in signature.parameters:
            raise ValueError(
                unknown(f"option of sparsity rule {name!r}:", option, signature.parameters)
            )
    for option, parameter in signature.parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"Sparsity rule {name!r} needs the option {option!r}.")
    return RULES[name](**options)
