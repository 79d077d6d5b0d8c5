"""Methods that train a dense tree and compute the model's sparse weights from it.

`sparsify` holds pruned parameters at 0. A reparametrization trains all of them, with thresholds
perhaps, and the model runs on a sparse function of them, so a pruned weight may come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cka_sr_jax.sparsity.masks import Masks, Params
from cka_sr_jax.sparsity.sparsify import SparseState


def _no_term(grads: Params, trained: Params) -> Params:
    return grads


def _no_restart(trained: Params) -> Params:
    return trained


class Reparametrization(NamedTuple):
    """A method that computes the model's sparse weights from a dense trained tree.

    The trained tree is {"weights": params}, with "thresholds" beside it for methods that learn
    them, so that the dense weights are never taken for the model's: those are `weights(trained)`.

    Attributes:
      init: `(params) -> trained`, from a model's parameters.
      weights: `(trained) -> params`, the model's sparse parameters; differentiable.
      masks: `(trained) -> masks` like the trained tree, `optax.MaskedNode()` at the thresholds.
      regularize: `(grads, trained) -> grads`, adds the gradient of the method's own loss term.
      restart: `(trained) -> trained`, run after each update.
    """

    init: Callable[[Params], Params]
    weights: Callable[[Params], Params]
    masks: Callable[[Params], Masks]
    regularize: Callable[[Params, Params], Params] = _no_term
    restart: Callable[[Params], Params] = _no_restart


def learn_masks(
    inner: optax.GradientTransformation, method: Reparametrization
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the trained tree of a reparametrization, with the masks in its state.

      method = dst(alpha=5e-6)
      trained = method.init(params)
      tx = learn_masks(optax.sgd(0.1, momentum=0.9), method)
      opt_state = tx.init(trained)
      grads = jax.grad(lambda trained: loss(method.weights(trained)))(trained)
      updates, opt_state = tx.update(grads, opt_state, trained)
      trained = optax.apply_updates(trained, updates)

    `get_masks` and `mask_metrics` work as after `sparsify`; the masks of the model's parameters are
    `get_masks(opt_state)["weights"]`. Like `sparsify` it is the outermost transform, but for
    `optax.MultiSteps`: another one after it would change the updates that the masks tell of.

    Args:
      inner: any Optax transform that ends in a parameter update.
      method: `soft_threshold`, `dst` or `sr_ste`, or a Reparametrization of yours.

    Raises:
      TypeError: `method` is not a Reparametrization.
      ValueError: `update` is called without the trained tree, or `init` with another tree.
    """
    if not isinstance(method, Reparametrization):
        raise TypeError(
            f"method={method!r} is no Reparametrization: pass one, for example dst(alpha=5e-6)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(trained: Params) -> SparseState:
        return SparseState(
            step=jnp.zeros((), jnp.int32),
            masks=method.masks(trained),
            inner_state=inner.init(trained),
        )

    def update(
        updates: Params, state: SparseState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError(
                "learn_masks needs the trained tree: call tx.update(grads, state, trained)."
            )
        grads = method.regularize(updates, params)
        updates, inner_state = inner.update(grads, state.inner_state, params, **extra)
        aims = optax.apply_updates(params, updates)
        targets = method.restart(aims)
        updates = jax.tree.map(_land, updates, aims, targets, params)
        state = state._replace(
            step=optax.safe_increment(state.step),
            masks=method.masks(targets),
            inner_state=inner_state,
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _land(update: Array, aim: Array, target: Array, value: Array) -> Array:
    """The update that takes `value` to `target`: the optimizer's own where that was its aim."""
    # value + (0 - value) is exactly 0.
    return jnp.where(aim == target, update, target - value)


def part(trained: Params, name: str) -> Params:
    """`trained[name]`.

    Raises:
      ValueError: this is no trained tree.
    """
    if not isinstance(trained, Mapping) or name not in trained:
        raise ValueError(
            f"this is no trained tree, for it has no {name!r}: make it with "
            "trained = method.init(params), and pass it where the parameters would go."
        )
    return trained[name]
