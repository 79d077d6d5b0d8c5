"""Rules whose masks never change: none at all, given ones, random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cka_sr_jax.sparsity.distributions import check_density, layer_counts, layer_densities
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    check_masks,
    fold_in_path,
    is_dense,
    maskable_shapes,
    masks_from_paths,
    random_masks,
)
from cka_sr_jax.sparsity.rule import Distributed, Rule


def dense() -> Rule:
    """No masks at all: `sparsify` with it trains as the inner optimizer does."""
    return Rule(lambda key, params: masks_from_paths(params, {}))


def static(masks: Masks) -> Rule:
    """Fixed masks from anywhere: pruning at initialization, a lottery ticket, a file.

    Args:
      masks: pytree like the parameters, with an array of bools (or zeros and ones) at each leaf to
        prune and `optax.MaskedNode()` at each that stays dense.

    Raises:
      ValueError: at `init`, where the masks do not have the parameters' structure and shapes, or
        hold other values than 0 and 1.
    """

    def init(key: Array, params: Params) -> Masks:
        given = check_masks(params, masks)
        given = {path: mask for path, mask in given.items() if not is_dense(mask)}
        for path, mask in given.items():
            if not isinstance(mask, jax.core.Tracer) and not np.isin(mask, (0, 1)).all():
                raise ValueError(
                    f"the mask of {path} has values other than 0 and 1: pass masks, not scores "
                    "or weights."
                )
        bools = {path: jnp.asarray(mask, bool) for path, mask in given.items()}
        return masks_from_paths(params, bools)

    return Rule(init)


def rst(
    density: float,
    distribution: Distributed = "erk",
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
    if exact:
        return Rule(random_start(density, distribution, exclude))
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        shapes = maskable_shapes(params, exclude)
        densities = layer_densities(shapes, density, distribution)
        masks = {
            path: jax.random.bernoulli(fold_in_path(key, path), densities[path], shape)
            for path, shape in shapes.items()
        }
        return masks_from_paths(params, masks)

    return Rule(init)


def random_start(
    density: float, distribution: Distributed, exclude: Sequence[str]
) -> Callable[[Array, Params], Masks]:
    """An `init` with exactly the distribution's count of each layer, at random places."""
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        shapes = maskable_shapes(params, exclude)
        return random_masks(key, params, layer_counts(shapes, density, distribution))

    return init
