"""Thresholds learned with the weights: STR has one for each layer, DST one for each unit.

The trained tree is {"weights": params, "thresholds": tree}. The second is shaped like the first,
with one array for each pruned layer and `optax.MaskedNode()` at leaves that stay dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    is_dense,
    map_masked,
    maskable_leaves,
    masks_from_paths,
)
from cka_sr_jax.sparsity.reparametrization import Reparametrization, part

Values = Array | np.ndarray | np.number
Threshold = Callable[[Values, Values], Array]  # (threshold, weight) -> an array like the weight


def soft_threshold(*, initial: float = -10.0, exclude: Sequence[str] = ()) -> Reparametrization:
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
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".

    Raises:
      ValueError: `initial` is not finite; at `init`, a pattern that matches nothing.
    """
    if not math.isfinite(initial):
        raise ValueError(f"initial={initial} is not a finite number: pass s, for example -10.0.")

    def start(weight: Array) -> Array:
        return jnp.full((), initial, _precise(weight))

    def kept(s: Float[Values, ""], weight: Values) -> Bool[Array, "..."]:
        return jnp.abs(weight).astype(s.dtype) > jax.nn.sigmoid(s)

    def effective(s: Float[Values, ""], weight: Values) -> Array:
        wide = weight.astype(s.dtype)
        shrunk = wide - jnp.sign(wide) * jax.nn.sigmoid(s)
        return jnp.where(kept(s, weight), shrunk, 0).astype(weight.dtype)

    return _thresholded(start, kept, effective, exclude)


def dst(alpha: float, *, exclude: Sequence[str] = ()) -> Reparametrization:
    """Dynamic sparse training (DST; Liu et al. 2020, arXiv 2005.06870).

      w_eff = w step(|w| - t),   loss + alpha sum_t exp(-t),   masks |w| >= t

    The threshold t has an entry for each output unit (neuron, filter), that is each index of the
    kernel's last axis. It starts at 0, where all is kept. The step's slope is 0 almost everywhere
    and is replaced by `step_slope`, so that t learns and a pruned weight may come back. A layer
    that keeps 1 % of its weights or less has its thresholds reset to exactly 0; the optimizer's
    slots stay.

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
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".

    Raises:
      ValueError: `alpha` is not a number >= 0; at `init`, a pattern that matches nothing.
    """
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha={alpha} is not a number >= 0: pass one, for example 5e-6.")

    def start(weight: Array) -> Array:
        return jnp.zeros(weight.shape[-1], _precise(weight))

    def distance(t: Float[Values, " out"], weight: Values) -> Float[Array, "..."]:
        return jnp.abs(weight).astype(t.dtype) - jnp.expand_dims(t, range(weight.ndim - 1))

    def kept(t: Float[Values, " out"], weight: Values) -> Bool[Array, "..."]:
        return distance(t, weight) >= 0

    def effective(t: Float[Values, " out"], weight: Values) -> Array:
        return (unit_step(distance(t, weight)) * weight.astype(t.dtype)).astype(weight.dtype)

    def regularize(grads: Params, trained: Params) -> Params:
        thresholds = jax.tree.map(
            lambda grad, t: grad - alpha * jnp.exp(-t),
            part(grads, "thresholds"),
            part(trained, "thresholds"),
        )
        return {**grads, "thresholds": thresholds}

    def restart(trained: Params) -> Params:
        def at_layer(t: Float[Values, " out"], weight: Values) -> Array:
            nearly_empty = jnp.sum(kept(t, weight), dtype=jnp.int32) <= weight.size // 100
            return jnp.where(nearly_empty, 0, t)

        thresholds = _map_thresholds(at_layer, trained)
        return {**trained, "thresholds": thresholds}

    method = _thresholded(start, kept, effective, exclude)
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
    start: Callable[[Array], Array], kept: Threshold, effective: Threshold, exclude: Sequence[str]
) -> Reparametrization:
    """The method whose thresholds start as start(weight) and prune layer by layer."""

    def init(params: Params) -> Params:
        leaves = maskable_leaves(params, exclude)
        starts = {path: start(jnp.asarray(leaf)) for path, leaf in leaves.items()}
        return {"weights": params, "thresholds": masks_from_paths(params, starts)}

    def weights(trained: Params) -> Params:
        return map_masked(effective, part(trained, "thresholds"), part(trained, "weights"))

    def masks(trained: Params) -> Masks:
        thresholds = part(trained, "thresholds")
        return {
            "weights": _map_thresholds(kept, trained),
            "thresholds": jax.tree.map(lambda _: optax.MaskedNode(), thresholds),
        }

    return Reparametrization(init, weights, masks)


def _map_thresholds(function: Threshold, trained: Params) -> Any:
    """`function(threshold, weight)` at each pruned layer and `optax.MaskedNode()` elsewhere."""

    def at_leaf(threshold: Any, weight: Any) -> Any:
        return threshold if is_dense(threshold) else function(threshold, weight)

    return jax.tree.map(
        at_leaf, part(trained, "thresholds"), part(trained, "weights"), is_leaf=is_dense
    )


def _precise(weight: Array) -> Any:
    """At least float32: a bfloat16 threshold would lose small updates to rounding."""
    return float32_or_wider(weight.dtype)
