"""Methods that train a dense tree and compute the model's sparse weights from it.

`sparsify` holds pruned parameters at 0. A reparametrization trains all of them, perhaps with
thresholds, and the model runs on a sparse function of them, so a pruned weight may come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cka_sr_jax.sparsity.masks import Masks, Params
from cka_sr_jax.sparsity.state import LearnedState


def _no_term(grads: Params, trained: Params) -> Params:
    return grads


def _no_restart(trained: Params) -> Params:
    return trained


class Reparametrization(NamedTuple):
    """A method that computes the model's sparse weights from a dense trained tree.

    The trained tree is {"weights": params}, with "thresholds" beside it for methods that learn
    them. The model's own weights are `weights(trained)`, never the tree itself.

    A method of your own, in full: of every kernel the model sees the weights above a fixed size,
    and the gradient reaches all weights (a straight-through estimate):

    >>> from cka_sr_jax.sparsity import apply_masks, layers_of, leaf_paths, learn_masks
    >>> from cka_sr_jax.sparsity import masks_from_paths
    >>> def above(size):
    ...     def masks(trained):
    ...         params = trained["weights"]
    ...         leaves, layers = leaf_paths(params), layers_of(params)
    ...         kept = {path: jnp.abs(leaf) > size for path, leaf in leaves if path in layers}
    ...         return {"weights": masks_from_paths(params, kept)}
    ...     def weights(trained):
    ...         seen = apply_masks(trained, masks(trained))["weights"]
    ...         through = lambda w, s: w + jax.lax.stop_gradient(s - w)
    ...         return jax.tree.map(through, trained["weights"], seen)
    ...     return Reparametrization(lambda params: {"weights": params}, weights, masks)
    >>> method = above(0.5)
    >>> trained = method.init({"kernel": jnp.array([[0.2, 1.0]]), "bias": jnp.array([0.1, 0.1])})
    >>> method.weights(trained)["kernel"].tolist()
    [[0.0, 1.0]]
    >>> tx = learn_masks(optax.sgd(0.1), method)

    Attributes:
      init: `(params) -> trained`, from a model's parameters.
      weights: `(trained) -> params`, the model's sparse parameters; differentiable.
      masks: `(trained) -> masks` like the trained tree, `optax.MaskedNode()` at the thresholds and
        at leaves that stay dense.
      regularize: `(grads, trained) -> grads`, adds the gradient of a loss term of the method.
      restart: `(trained) -> trained`, applied after each update.
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

    >>> from cka_sr_jax.sparsity import dst, get_masks, learn_masks
    >>> method = dst(alpha=1e-3)
    >>> trained = method.init({"kernel": jnp.ones((4, 3))})
    >>> tx = learn_masks(optax.sgd(0.1, momentum=0.9), method)
    >>> opt_state = tx.init(trained)
    >>> loss = lambda trained: jnp.sum(method.weights(trained)["kernel"] ** 2)
    >>> updates, opt_state = tx.update(jax.grad(loss)(trained), opt_state, trained)
    >>> trained = optax.apply_updates(trained, updates)
    >>> masks = get_masks(opt_state)["weights"]  # of the model's parameters

    `get_masks` and `mask_metrics` work as after `sparsify`. Where rounding decides between two
    weights, their masks may choose another one than `method.weights`. Like `sparsify` it is the
    outermost transform, which only `optax.MultiSteps` may wrap: another one after it would change
    the trained tree that the masks are computed from.

    Args:
      inner: any Optax transform whose result is added to the parameters.
      method: `soft_threshold`, `dst`, `sr_ste`, or a Reparametrization of yours.

    Returns:
      A transform whose `update(updates, state, params)` takes the gradients of the trained tree as
      `updates` and the trained tree as `params`; its state is a `SparseState`.

    Raises:
      TypeError: `method` is not a Reparametrization.
      ValueError: from `init`, another tree than `method.init` gives; from `update`, no trained
        tree.
    """
    if not isinstance(method, Reparametrization):
        raise TypeError(
            f"method={method!r} is not a Reparametrization: pass one, such as dst(alpha=5e-6)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(trained: Params) -> LearnedState:
        return LearnedState(
            step=jnp.zeros((), jnp.int32),
            masks=method.masks(trained),
            inner_state=inner.init(trained),
        )

    def update(
        updates: Params, state: LearnedState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, LearnedState]:
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
    """The update from `value` to `target`: the optimizer's own where it aims there."""
    # value + (0 - value) is exactly 0.
    with jax.numpy_dtype_promotion("standard"):  # updates may be narrower than parameters
        return jnp.where(aim == target, update, target - value)


def part(trained: Params, name: str) -> Params:
    """`trained[name]`.

    Raises:
      ValueError: `trained` is another tree.
    """
    if not isinstance(trained, Mapping) or name not in trained:
        raise ValueError(
            f"the trained tree has no {name!r}: make it with trained = method.init(params), and "
            "pass it where the parameters would go."
        )
    return trained[name]
