"""`sparsify`: any Optax optimizer becomes a sparse-training method."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    apply_masks,
    churn,
    explored,
    is_dense,
    map_masked,
)
from cka_sr_jax.sparsity.new_weights import NewWeights, older, scaled
from cka_sr_jax.sparsity.rule import Change, Rule
from cka_sr_jax.sparsity.slots import check_slots, reset_slots
from cka_sr_jax.sparsity.state import Kinds, SparseState, check_state, holds_masks


def sparsify(
    inner: optax.GradientTransformation,
    rule: Rule,
    *,
    seed: int | Int[Array, ""] = 0,
    track_explored: bool = True,
    new_weights: NewWeights | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner` on masked parameters, under masks that the rule sets and changes.

    Each update gives `inner` the gradients, parameters and slots of the weights that stay, with 0
    elsewhere, and returns -param wherever the mask is False, so that `optax.apply_updates` puts
    exactly 0 there. The forward pass then needs no masking, and `jax.grad` still gives the dense
    gradient, which some rules grow from. Where the rule changes the masks, new weights start at 0,
    with what `inner` makes of a 0 in their slots (momentum, second moment): 0, but for transforms
    that turn a gradient of 0 into something, such as centralization. A change that is due while a
    gradient of a pruned layer is not finite waits until all are. All stays on the device; equal
    seeds and inputs give equal masks on every device.

    >>> from cka_sr_jax.sparsity import rst, sparse_init, sparsify
    >>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(density=0.05))
    >>> params, opt_state = sparse_init(tx, params)  # pruned from the first step on
    >>> grads = jax.grad(lambda p: jnp.sum((p["kernel"] + p["bias"]) ** 2))(params)
    >>> updates, opt_state = tx.update(grads, opt_state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> int((params["kernel"] != 0).sum())
    10

    `sparsify` is the outermost transform; only `optax.MultiSteps` and `optax.partition` may wrap
    it. Another transform after it would change the updates that hold pruned weights at 0:
    `sparse_init` and `get_masks` raise an error for that. An average of parameters over time (EMA)
    is not sparse under changing masks; `apply_masks(average, get_masks(opt_state))` makes it so.

    Args:
      inner: any Optax transform whose result is added to the parameters: `optax.adam(1e-3)`.
      rule: from `make_rule`, a rule's function, or a `Rule` of yours.
      seed: of the rule's random choices.
      track_explored: remember which weights were ever kept, for "explored" in `mask_metrics`; a
        byte for each weight, at rules that change the masks.
      new_weights: the share of its update that a newly grown weight gets: a function
        `(age, step) -> factor`, where age counts its updates, 1 at the first; `adam_correction()`,
        `ramp(100)`, or None for full updates. It takes two bytes for each weight.

    Returns:
      A transform whose `update(updates, state, params)` takes the dense gradients as `updates`, and
      whose state is a `SparseState`. `update(..., may_change=False)` leaves the masks as they are
      whether a change is due or not: a program compiled with it has no branch, at which a GPU waits
      for the host in every step. It is for steps at which neither `rule.due(state.step)` nor
      `state.pending` is True.

    Raises:
      TypeError: `rule` is not a Rule, or `new_weights` not a function; from `update`, `may_change`
        is not a Python bool.
      ValueError: from `update`, when it gets no `params`, the state of another transform or of
        another kind of rule, or masks that do not fit the parameters; from `init`, for an inner
        optimizer that is sparse already, or, with a rule that changes masks, one whose slots are
        not arranged as the parameters.
    """
    if not isinstance(rule, Rule):
        raise TypeError(
            f"the rule is a {type(rule).__name__}: pass a Rule, such as make_rule('rst', "
            "density=0.05), or static(masks) for masks that you have."
        )
    if new_weights is not None and not callable(new_weights):
        raise TypeError(
            f"new_weights={new_weights!r} is not a function of age and step: pass "
            "adam_correction(), or ramp(100)."
        )
    inner = optax.with_extra_args_support(inner)
    # A plain False says that the masks never change: nothing to compile, nothing to count.
    changes = rule.due(jnp.zeros((), jnp.int32)) is not False

    def init(params: Params) -> SparseState:
        masks = rule.init(jax.random.key(seed), params)
        inner_state = inner.init(apply_masks(params, masks))
        if holds_masks(inner_state):
            raise ValueError(
                "the optimizer given to sparsify holds masks already, and there should be one set: "
                "make it with tx = sparsify(optimizer, rule), once."
            )
        if changes:
            check_slots(inner, inner_state, masks)
        return SparseState(
            step=jnp.zeros((), jnp.int32),
            masks=masks,
            inner_state=inner_state,
            gradient_average=_zeros(masks, jnp.float32) if rule.gradient_decay else (),
            pending=jnp.zeros((), bool) if changes else (),
            kept_before=_zeros(masks, bool) if changes and track_explored else (),
            churn=jnp.zeros((), jnp.float32) if changes else (),
            age=_zeros(masks, jnp.uint16) if changes and new_weights else (),
        )

    def change_masks(
        state: SparseState, params: Params, grads: Params, rule_grads: Params
    ) -> _Masked:
        key = jax.random.fold_in(jax.random.key(seed), optax.safe_increment(state.step))

        def change(masks: Masks, params: Params, grads: Params) -> Masks | Change:
            return rule.update(key, state.step, masks, params, grads)

        change = jax.jit(change)  # so that it is traced once, here and below
        restarts = isinstance(jax.eval_shape(change, state.masks, params, rule_grads), Change)

        def keep(masks: Masks, *_: Params) -> Masks | Change:
            return Change(masks, masks) if restarts else masks

        due = rule.due(state.step) | state.pending

        def attempt(masks: Masks, params: Params, grads: Params, rule_grads: Params) -> _Attempt:
            # Gradients that are not finite say nothing about where to grow.
            ready = due & _all_finite(grads, masks)
            after = jax.lax.cond(ready, change, keep, masks, params, rule_grads)
            new = after.masks if restarts else after
            new_churn = jax.lax.cond(ready, churn, lambda *_: state.churn, masks, new)
            return _Attempt(after, new_churn, due & ~ready)

        def wait(masks: Masks, *_: Params) -> _Attempt:
            return _Attempt(keep(masks), state.churn, jnp.zeros((), bool))

        # What a branch returns is in memory at every step: masks and scalars. Arrays come as
        # arguments: outside jit, those that it closes over would be compiled in as constants.
        after, new_churn, pending = jax.lax.cond(
            _anywhere(due), attempt, wait, state.masks, params, grads, rule_grads
        )
        masks, kept = after if restarts else (after, _both(state.masks, after))
        return _Masked(masks, kept, new_churn, pending)

    def update(
        updates: Params,
        state: SparseState,
        params: Params | None = None,
        *,
        may_change: bool = True,
        **extra: Any,
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: call tx.update(grads, state, params).")
        if not isinstance(may_change, bool):
            raise TypeError(
                f"may_change={may_change!r} is not a Python bool: it chooses the program, so name "
                "it in static_argnames of jax.jit."
            )
        kinds = Kinds(changes, changes and track_explored, changes and new_weights is not None)
        check_state(state, params, rule, kinds)
        step = optax.safe_increment(state.step)
        if not changes:
            updates, inner_state = inner.update(
                apply_masks(updates, state.masks), state.inner_state, params, **extra
            )
            state = state._replace(step=step, inner_state=inner_state)
            return map_masked(_or_to_zero, state.masks, updates, params), state
        average, rule_grads = state.gradient_average, updates
        if rule.gradient_decay:
            average = _update_average(average, updates, state.masks, rule.gradient_decay)
            rule_grads = map_masked(lambda mask, grad, mean: mean, state.masks, updates, average)
        if may_change:
            after = change_masks(state, params, updates, rule_grads)
        else:
            after = _Masked(state.masks, state.masks, state.churn, state.pending)
        # The inner optimizer sees what stays, with 0 elsewhere, so that its slots come out of it as
        # they are returned: reset after it, they would be in memory twice.
        inner_state = reset_slots(inner, state.inner_state, after.kept)
        masked_grads = apply_masks(updates, after.kept)
        masked_params = apply_masks(params, after.kept)
        updates, inner_state = inner.update(masked_grads, inner_state, masked_params, **extra)
        age, explored_now = state.age, state.kept_before
        if new_weights:
            age = jax.tree.map(older, after.kept, age)
            updates = map_masked(partial(scaled, new_weights, step), age, updates)
        if track_explored:
            explored_now = explored(state.kept_before, state.masks)
        state = state._replace(
            step=step,
            masks=after.masks,
            inner_state=inner_state,
            gradient_average=average,
            pending=after.pending,
            kept_before=explored_now,
            churn=after.churn,
            age=age,
        )
        return map_masked(_or_to_zero, after.kept, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


class _Masked(NamedTuple):
    """The masks after a step, with those of the weights that stay; and what `SparseState` has."""

    masks: Masks
    kept: Masks
    churn: Any
    pending: Any


class _Attempt(NamedTuple):
    """What a step does to the masks: those after it, how much changed, and what still waits."""

    after: Masks | Change
    churn: Float[Array, ""]
    pending: Bool[Array, ""]


@jax.custom_batching.custom_vmap
def _anywhere(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the flag is True in any run of a `vmap`: a cond on it then stays a cond."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_batch(size: int, batched: Sequence[bool], flag: Bool[Array, " n"]) -> Any:
    return _anywhere(jnp.any(flag)), False


def _both(before: Masks, after: Masks) -> Masks:
    return jax.tree.map(jnp.logical_and, before, after)


def _all_finite(grads: Params, masks: Masks) -> Bool[Array, ""]:
    """Whether the gradients of all masked leaves are finite."""
    masked, finite = dict(leaf_paths(masks)), jnp.ones((), bool)
    for path, grad in leaf_paths(grads):
        if path in masked:
            finite &= jnp.all(jnp.isfinite(grad))
    return finite


def _or_to_zero(mask: Array, update: Array, param: Array) -> Array:
    """The update where the mask is True, and elsewhere the one that leads to exactly 0."""
    # -param in its own type: rounded to the type of narrower updates it would miss exactly 0.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.where(mask, update, -param)


def _zeros(masks: Masks, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda mask: jnp.zeros_like(mask, dtype), masks)  # with its sharding


def _update_average(average: Any, grads: Params, masks: Masks, decay: float) -> Any:
    def at_leaf(mask: Any, grad: Array, mean: Any) -> Any:
        if is_dense(mask):
            return mean
        new = decay * mean + (1 - decay) * grad.astype(jnp.float32)
        return jnp.where(jnp.isfinite(grad), new, mean)  # or it would stay NaN for good

    return jax.tree.map(at_leaf, masks, grads, average, is_leaf=is_dense)


def with_masks(
    inner: optax.GradientTransformation, state: SparseState, masks: Masks
) -> SparseState:
    """The state of `sparsify(inner, ...)` under other masks, with 0 in the slots they prune."""
    return state._replace(masks=masks, inner_state=reset_slots(inner, state.inner_state, masks))
