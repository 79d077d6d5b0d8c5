"""`sparsify`: any Optax optimizer becomes a sparse-training method."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    apply_masks,
    check_masks,
    churn,
    density,
    explored,
    is_dense,
    map_masked,
)
from cka_sr_jax.sparsity.rule import Rule


class SparseState(NamedTuple):
    """Optimizer state of `sparsify` and `learn_masks`.

    Attributes:
      step: updates so far.
      masks: bool arrays, and `optax.MaskedNode()` at leaves that stay dense.
      inner_state: the inner optimizer's.
      gradient_average: of the dense gradients at masked leaves, for rules that need it, else ().
      kept_before: which weights earlier masks kept, for rules that change the masks, else ().
      churn: how much the last change changed (`churn`), for the same rules, else ().
    """

    step: Int[Array, ""]
    masks: Masks
    inner_state: Any
    gradient_average: Any = ()
    kept_before: Any = ()
    churn: Any = ()


def sparsify(
    inner: optax.GradientTransformation, rule: Rule, *, seed: int | Int[Array, ""] = 0
) -> optax.GradientTransformationExtraArgs:
    """`inner` on masked parameters, under masks that the rule sets and changes.

    Each update gives `inner` the masked gradients, and returns -param wherever the mask is False,
    so that `optax.apply_updates` puts exactly 0 there. The forward pass then needs no masking, and
    `jax.grad` still gives the dense gradient, which some rules grow from. Where the rule changes
    the masks, new weights start at 0, with 0 in every slot of the inner state (momentum, second
    moment). All stays on the device; equal seeds and inputs give equal masks on every device.

    >>> from cka_sr_jax.sparsity import apply_masks, get_masks, rst, sparsify
    >>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(density=0.05))
    >>> opt_state = tx.init(params)
    >>> params = apply_masks(params, get_masks(opt_state))  # pruned from the first step on
    >>> grads = jax.grad(lambda p: jnp.sum((p["kernel"] + p["bias"]) ** 2))(params)
    >>> updates, opt_state = tx.update(grads, opt_state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> int((params["kernel"] != 0).sum())
    10

    `sparsify` is the outermost transform; only `optax.MultiSteps` may wrap it. Another transform
    after it would change the updates that hold pruned weights at 0, and `get_masks` raises an error
    for that.

    Args:
      inner: any Optax transform whose result is added to the parameters: `optax.adam(1e-3)`.
      rule: from `make_rule`, a rule's function, or a `Rule` of yours.
      seed: of the rule's random choices.

    Returns:
      A transform whose `update(updates, state, params)` takes the dense gradients as `updates`, and
      whose state is a `SparseState`.

    Raises:
      TypeError: `rule` is not a Rule.
      ValueError: from `update`, when it gets no `params`, the state of another transform or of
        another kind of rule, or masks that do not fit the parameters.
    """
    if not isinstance(rule, Rule):
        raise TypeError(
            f"the rule is a {type(rule).__name__}: pass a Rule, such as make_rule('rst', "
            "density=0.05), or static(masks) for masks that you have."
        )
    inner = optax.with_extra_args_support(inner)
    # A plain False says that the masks never change: nothing to compile, nothing to count.
    changes = rule.due(jnp.zeros((), jnp.int32)) is not False

    def init(params: Params) -> SparseState:
        masks = rule.init(jax.random.key(seed), params)
        return SparseState(
            step=jnp.zeros((), jnp.int32),
            masks=masks,
            inner_state=inner.init(apply_masks(params, masks)),
            gradient_average=_zeros(masks, jnp.float32) if rule.gradient_decay else (),
            kept_before=_zeros(masks, bool) if changes else (),
            churn=jnp.zeros(()) if changes else (),
        )

    def update(
        updates: Params, state: SparseState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: call tx.update(grads, state, params).")
        _check_state(state, params, rule, changes)
        grads = updates
        updates, inner_state = inner.update(
            apply_masks(grads, state.masks), state.inner_state, params, **extra
        )
        average, rule_grads = state.gradient_average, grads
        if rule.gradient_decay:
            average = _update_average(average, grads, state.masks, rule.gradient_decay)
            rule_grads = map_masked(lambda mask, grad, mean: mean, state.masks, grads, average)
        state = state._replace(
            step=optax.safe_increment(state.step),
            inner_state=inner_state,
            gradient_average=average,
        )
        kept = state.masks
        if changes:

            def change(state: SparseState) -> tuple[Masks, SparseState]:
                key = jax.random.fold_in(jax.random.key(seed), state.step)
                new = rule.update(key, state.step - 1, state.masks, params, rule_grads)
                kept = map_masked(jnp.logical_and, state.masks, new)
                return kept, state._replace(
                    masks=new,
                    inner_state=_reset_slots(inner, state.inner_state, kept),
                    kept_before=explored(state.kept_before, state.masks),
                    churn=churn(state.masks, new),
                )

            kept, state = jax.lax.cond(
                rule.due(state.step - 1), change, lambda state: (state.masks, state), state
            )
        updates = map_masked(_or_to_zero, kept, updates, params)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _or_to_zero(mask: Array, update: Array, param: Array) -> Array:
    """The update where the mask is True, and elsewhere the one that leads to exactly 0."""
    # -param in its own type: rounded to the type of narrower updates it would miss exactly 0.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.where(mask, update, -param)


def _check_state(state: Any, params: Params, rule: Rule, changes: bool) -> None:
    """Raise ValueError for a state of another rule, which might train dense without a word."""
    made_by_it = isinstance(state, SparseState) and (
        bool(jax.tree.leaves(state.kept_before)) == bool(changes and jax.tree.leaves(state.masks))
        and bool(jax.tree.leaves(state.gradient_average))
        == bool(rule.gradient_decay and jax.tree.leaves(state.masks))
    )
    if made_by_it and not jax.tree.leaves(state.masks):  # as of a dense rule
        made_by_it = not jax.tree.leaves(jax.eval_shape(rule.init, jax.random.key(0), params))
    if not made_by_it:
        raise ValueError(
            "this optimizer state is not one of this sparsify: make it with tx.init(params), or "
            "train under masks that you have with static(masks)."
        )
    check_masks(params, state.masks)


def _zeros(masks: Masks, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda mask: jnp.zeros(mask.shape, dtype), masks)


def _update_average(average: Any, grads: Params, masks: Masks, decay: float) -> Any:
    def at_leaf(mask: Any, grad: Array, mean: Any) -> Any:
        return mean if is_dense(mask) else decay * mean + (1 - decay) * grad.astype(jnp.float32)

    return jax.tree.map(at_leaf, masks, grads, average, is_leaf=is_dense)


def _reset_slots(inner: optax.GradientTransformation, inner_state: Any, kept: Masks) -> Any:
    """The inner state with 0 in every parameter-shaped slot where `kept` is False."""

    def reset(slot: Any, mask: Any) -> Any:
        # Optimizers may leave a parameter out of a slot (muon) or factor the slot (adafactor).
        if is_dense(mask) or is_dense(slot) or slot.shape != mask.shape:
            return slot
        return jnp.where(mask, slot, jnp.zeros_like(slot))

    return optax.tree_utils.tree_map_params(inner, reset, inner_state, kept, is_leaf=is_dense)


def with_masks(
    inner: optax.GradientTransformation, state: SparseState, masks: Masks
) -> SparseState:
    """The state of `sparsify(inner, ...)` under other masks, with 0 in the slots they prune."""
    return state._replace(masks=masks, inner_state=_reset_slots(inner, state.inner_state, masks))


def get_masks(opt_state: Any) -> Masks:
    """The masks inside an optimizer state, however deep `sparsify` was wrapped.

    Raises:
      ValueError: the state holds no masks, or several sets; or another transform follows `sparsify`
        in an `optax.chain` and would undo the pruning. In an `optax.named_chain` this goes unseen:
        its state is a dict, which loses the order under jit.
    """
    return _find_state(opt_state).masks


def mask_metrics(opt_state: Any) -> dict[str, Float[Array, ""]]:
    """Scalars on the masks inside an optimizer state.

    Returns:
      "density"; and for a rule that changes the masks "churn", how much the last change changed
      (`churn`), and "explored", the share of weights that were kept at least once: R_s, the
      exploration rate of in-time over-parametrization (ITOP; Liu et al. 2021, arXiv 2102.02887).

    Raises:
      ValueError: as `get_masks`.
    """
    state = _find_state(opt_state)
    metrics = {"density": density(state.masks)}
    if jax.tree.leaves(state.kept_before):
        metrics["churn"] = state.churn
        metrics["explored"] = density(explored(state.kept_before, state.masks))
    return metrics


def _find_state(opt_state: Any) -> SparseState:
    found = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            opt_state, is_leaf=lambda node: isinstance(node, SparseState)
        )
        if isinstance(leaf, SparseState)
    ]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} sets of masks and should hold 1: make it with "
            "tx = sparsify(optimizer, rule), once."
        )
    path, state = found[0]
    node = opt_state
    for entry in path:
        # The state of a chain is a plain tuple, with an entry for each of its transforms.
        if type(node) is tuple and entry.idx != len(node) - 1:
            raise ValueError(
                "sparsify is followed by another transform, which changes the updates that hold "
                "pruned weights at 0: write sparsify(optax.chain(...), rule)."
            )
        node = _child(node, entry)
    return state


def _child(node: Any, entry: Any) -> Any:
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return getattr(node, entry.name)
    if isinstance(entry, jax.tree_util.SequenceKey):
        return node[entry.idx]
    return node[entry.key]
