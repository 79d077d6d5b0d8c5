"""Thresholds learned with the weights: STR has one for each layer, DST one for each unit.

The trained tree is {"weights": params, "thresholds": tree}. The second is shaped like the first,
with one array for each pruned layer and `optax.MaskedNode()` at leaves that stay dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax._paths import leaf_paths, replace_leaves
from cka_sr_jax.sparsity.layers import Axes, Finder, Layer, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, Params, masks_from_paths
from cka_sr_jax.sparsity.per_layer import over_stack
from cka_sr_jax.sparsity.reparametrization import Reparametrization, part
from cka_sr_jax.sparsity.selection import count_kept, wide_counts

# (layer, threshold, weight) -> an array like the weight
Threshold = Callable[[Layer, Array, Array], Array]


def soft_threshold(
    *,
    initial: float = -10.0,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Reparametrization:
    """Soft threshold reparametrization (STR; Kusupati et al. 2020, arXiv 2002.03231).

      w_eff = sign(w) max(|w| - sigmoid(s), 0),   masks |w| > sigmoid(s)

    Each layer has one scalar s, which is trained with the weights. Weight decay pulls s toward 0,
    which prunes; the loss holds it back. More decay gives more sparsity, and no decay hardly any.
    Let the optimizer decay the whole trained tree, as below.

    The loss can hold s back once s is above about -10, where the sigmoid's slope counts. Further
    down decay alone moves s, by about -learning_rate * decay * s / (1 - momentum) a step, and
    nothing is pruned. The authors' ImageNet runs start at -3200 and take 500,000 steps at decay
    2.25e-5 (ResNet-50, 90 % sparse); a short run from there stays dense.

    >>> from cka_sr_jax.sparsity import learn_masks, soft_threshold
    >>> method = soft_threshold()
    >>> trained = method.init({"kernel": jnp.ones((4, 3))})
    >>> decay = optax.add_decayed_weights(1e-4)
    >>> tx = learn_masks(optax.chain(decay, optax.sgd(0.1, momentum=0.9)), method)

    Args:
      initial: s at the start; sigmoid(-10) = 4.5e-5.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.

    Raises:
      ValueError: `initial` is not finite; at `init`, a pattern that matches nothing.
    """
    if not math.isfinite(initial):
        raise ValueError(f"initial={initial} is not a finite number: pass s, for example -10.0.")

    def start(layer: Layer, weight: Array) -> Array:
        return jnp.full((), initial, _precise(weight))

    def kept(layer: Layer, s: Array, weight: Array) -> Bool[Array, "..."]:
        return jnp.abs(weight).astype(s.dtype) > jax.nn.sigmoid(s)

    def effective(layer: Layer, s: Array, weight: Array) -> Array:
        wide = weight.astype(s.dtype)
        shrunk = wide - jnp.sign(wide) * jax.nn.sigmoid(s)
        return jnp.where(kept(layer, s, weight), shrunk, 0).astype(weight.dtype)

    find = finder(include, exclude, stacked, input_axes)
    return _thresholded(find, start, kept, effective)


def dst(
    alpha: float,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Reparametrization:
    """Dynamic sparse training (DST; Liu et al. 2020, arXiv 2005.06870).

      w_eff = w step(|w| - t),   loss + alpha sum_t exp(-t),   masks |w| >= t

    The threshold t has an entry for each output unit (neuron, filter). It starts at 0, where all is
    kept. The step's slope is 0 almost everywhere and is replaced by `step_slope`, so that t learns
    and a pruned weight may come back. A layer that keeps 1 % of its weights or less has its
    thresholds reset to exactly 0; the optimizer's slots stay.

    >>> from cka_sr_jax.sparsity import dst, learn_masks
    >>> method = dst(alpha=5e-4)
    >>> trained = method.init({"kernel": jnp.ones((4, 3))})
    >>> trained["thresholds"]["kernel"].tolist()
    [0.0, 0.0, 0.0]
    >>> tx = learn_masks(optax.sgd(0.1, momentum=0.9), method)

    Args:
      alpha: strength of the term that raises the thresholds, 0 or more. The authors use 5e-6 for
        VGG-16 on CIFAR-10 and 5e-4 for LeNet on MNIST. `learn_masks` adds the term's gradient, so
        the loss that you log does not contain the term.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.

    Raises:
      ValueError: `alpha` is not a number >= 0; at `init`, a pattern that matches nothing.
    """
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha={alpha} is not a number >= 0: pass one, for example 5e-6.")

    def start(layer: Layer, weight: Array) -> Array:
        return jnp.zeros([weight.shape[axis] for axis in layer.outputs], _precise(weight))

    def distance(layer: Layer, t: Array, weight: Array) -> Float[Array, "..."]:
        return jnp.abs(weight).astype(t.dtype) - jnp.expand_dims(t, layer.fan_in)

    def kept(layer: Layer, t: Array, weight: Array) -> Bool[Array, "..."]:
        return distance(layer, t, weight) >= 0

    def effective(layer: Layer, t: Array, weight: Array) -> Array:
        step = unit_step(distance(layer, t, weight))
        return (weight.astype(t.dtype) * step).astype(weight.dtype)

    def regularize(grads: Params, trained: Params) -> Params:
        thresholds = jax.tree.map(
            lambda grad, t: grad - alpha * jnp.exp(-t),
            part(grads, "thresholds"),
            part(trained, "thresholds"),
        )
        return {**grads, "thresholds": thresholds}

    def restart(trained: Params) -> Params:
        def at_layer(layer: Layer, t: Array, weight: Array) -> Array:
            with wide_counts(weight.size):
                nearly_empty = count_kept(kept(layer, t, weight)) <= weight.size // 100
            return jnp.where(nearly_empty, 0, t)

        thresholds = _map_thresholds(at_layer, find, trained)
        return {**trained, "thresholds": replace_leaves(part(trained, "thresholds"), thresholds)}

    find = finder(include, exclude, stacked, input_axes)
    method = _thresholded(find, start, kept, effective)
    return method._replace(regularize=regularize, restart=restart)


@jax.custom_jvp
def unit_step(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where x >= 0, else 0, with `step_slope` as its derivative."""
    return (x >= 0).astype(x.dtype)


@unit_step.defjvp
def _unit_step_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return unit_step(x), step_slope(x) * tangent


def step_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The long-tailed estimator of DST: 2 - 4|x| up to |x| = 0.4, 0.4 up to |x| = 1, then 0."""
    size = jnp.abs(x)
    return jnp.where(size <= 0.4, 2 - 4 * size, jnp.where(size <= 1, 0.4, 0))


def _thresholded(
    find: Finder, start: Callable[[Layer, Array], Array], kept: Threshold, effective: Threshold
) -> Reparametrization:
    """The method whose thresholds start as start(layer, weight) and prune layer by layer."""

    def init(params: Params) -> Params:
        leaves, starts = dict(leaf_paths(params)), {}
        for path, layer in find(params).items():
            of_layer = over_stack(partial(start, layer), layer.stack)
            starts[path] = of_layer(jnp.asarray(leaves[path]))
        return {"weights": params, "thresholds": masks_from_paths(params, starts)}

    def weights(trained: Params) -> Params:
        return replace_leaves(part(trained, "weights"), _map_thresholds(effective, find, trained))

    def masks(trained: Params) -> Masks:
        thresholds = part(trained, "thresholds")
        found = _map_thresholds(kept, find, trained)
        return {
            "weights": masks_from_paths(part(trained, "weights"), found),
            "thresholds": jax.tree.map(lambda _: optax.MaskedNode(), thresholds),
        }

    return Reparametrization(init, weights, masks)


def _map_thresholds(function: Threshold, find: Finder, trained: Params) -> dict[str, Array]:
    """{path: function(layer, threshold, weight)} of the pruned layers."""
    weights, found = part(trained, "weights"), {}
    layers, leaves = find(weights), dict(leaf_paths(weights))
    for path, threshold in leaf_paths(part(trained, "thresholds")):
        of_layer = over_stack(partial(function, layers[path]), layers[path].stack)
        found[path] = of_layer(jnp.asarray(threshold), jnp.asarray(leaves[path]))
    return found


def _precise(weight: Array) -> Any:
    """At least float32: a bfloat16 threshold would lose small updates to rounding."""
    return float32_or_wider(weight.dtype)
