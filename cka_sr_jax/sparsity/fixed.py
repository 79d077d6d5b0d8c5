"""Rules whose masks never change: no masks, given masks, random masks."""

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
    """Keep every weight: `sparsify(optimizer, dense())` trains as `optimizer` does.

    >>> import optax
    >>> from cka_sr_jax.sparsity import dense, density, get_masks, sparsify
    >>> opt_state = sparsify(optax.sgd(0.1), dense()).init({"kernel": jnp.ones((20, 30))})
    >>> float(density(get_masks(opt_state)))
    1.0
    """
    return Rule(lambda key, params: masks_from_paths(params, {}))


def static(masks: Masks) -> Rule:
    """Keep given masks: those of a pruner, a lottery ticket, a file.

    >>> from cka_sr_jax.sparsity import n_m_masks, static
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
    >>> rule = static(n_m_masks(params, n=2, m=4))

    Args:
      masks: pytree like the parameters. A leaf to prune has an array of bools (or zeros and ones)
        of the parameter's shape, a leaf that stays dense has `optax.MaskedNode()`.

    Raises:
      ValueError: at `init`, masks that lack the structure or the shapes of the parameters, or that
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
    """Keep random masks (RST; Liu et al. 2022, arXiv 2202.02643).

    >>> import optax
    >>> from cka_sr_jax.sparsity import apply_masks, density, get_masks, rst, sparsify
    >>> params = {"mid": jnp.ones((20, 30)), "head": jnp.ones((30, 5)), "bias": jnp.ones(5)}
    >>> tx = sparsify(optax.sgd(0.1), rst(density=0.1, exclude="head"))
    >>> opt_state = tx.init(params)
    >>> params = apply_masks(params, get_masks(opt_state))
    >>> int((params["mid"] != 0).sum()), int((params["head"] != 0).sum())
    (60, 150)

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities, which replaces `density`;
        or a function `({path: shape}, density) -> {path: density}`.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      exact: True keeps exactly round(layer density * layer size) weights of each layer. False draws
        each weight on its own, as the reference code does.

    Raises:
      ValueError: density outside (0, 1]; at `init`, an unknown distribution or a pattern that
        matches nothing.
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
    """A rule's `init`: the distribution's count of each layer, exactly, at random places.

    Raises:
      ValueError: density outside (0, 1]; at `init`, an unknown distribution or pattern.
    """
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        shapes = maskable_shapes(params, exclude)
        return random_masks(key, params, layer_counts(shapes, density, distribution))

    return init
