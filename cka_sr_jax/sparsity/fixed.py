"""Rules whose masks never change: no masks, given masks, random masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density, layer_densities
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, Params, masks_from_paths
from cka_sr_jax.sparsity.per_layer import by_path, layer_names, over_stack
from cka_sr_jax.sparsity.random_places import drawn_like, layer_keys
from cka_sr_jax.sparsity.rule import Distributed, Rule
from cka_sr_jax.sparsity.starts import given_masks, start_masks


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
      masks: pytree like the parameters, or a part of it. A leaf to prune has an array of bools (or
        zeros and ones) of the parameter's shape. Leaves that are missing, or `optax.MaskedNode()`,
        stay dense.

    Raises:
      ValueError: at `init`, masks of leaves or shapes that the parameters lack, or that hold other
        values than 0 and 1.
    """
    return Rule(lambda key, params: given_masks(params, masks))


def rst(
    density: float,
    distribution: Distributed = "erk",
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
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
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      exact: True keeps exactly round(layer density * layer size) weights of each layer. False draws
        each weight on its own, as the reference code does.

    Raises:
      ValueError: density outside (0, 1]; at `init`, an unknown distribution or a pattern that
        matches nothing.
    """
    find = finder(include, exclude, stacked, input_axes)
    if exact:
        return Rule(start_masks(find, density, distribution))
    check_density(density)

    def init(key: Array, params: Params) -> Masks:
        layers, leaves, masks = find(params), dict(leaf_paths(params)), {}
        densities = layer_densities(layer_names(layers), density, distribution)
        shares = by_path(layers, densities)
        for path, layer in layers.items():
            keys, share = layer_keys(key, path, layer), jnp.asarray(shares[path], jnp.float32)
            masks[path] = drawn_like(leaves[path], _bernoulli, layer, keys, share)
        return masks_from_paths(params, masks)

    return Rule(init)


def _bernoulli(layer: Layer, keys: Array, shares: Array) -> Bool[Array, "..."]:
    """A mask that keeps each weight by itself, with its layer's probability in `shares`."""
    shape = layer.shape[layer.stack :]
    draw = over_stack(lambda key, share: jax.random.bernoulli(key, share, shape), layer.stack)
    return draw(keys, shares)
