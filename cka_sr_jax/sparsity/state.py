"""The optimizer state of `sparsify` and `learn_masks`, and what can be read from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    apply_masks,
    check_masks,
    density,
    explored,
    kept_weights,
    merge_masks,
)
from cka_sr_jax.sparsity.rule import Rule


class SparseState(NamedTuple):
    """Optimizer state of `sparsify` and `learn_masks`.

    Attributes:
      step: updates so far.
      masks: bool arrays, and `optax.MaskedNode()` at leaves that stay dense.
      inner_state: the inner optimizer's.
      gradient_average: of the dense gradients at masked leaves, for rules that need it, else ().
      pending: whether a change was due and waits for finite gradients of the pruned layers, for
        rules that change the masks, else ().
      kept_before: which weights earlier masks kept, for the same rules, else ().
      churn: how much the last change changed (`churn`), for the same rules, else ().
      age: updates of each weight since it was grown, up to 65,535, where `new_weights` asks for it,
        else ().
    """

    step: Int[Array, ""]
    masks: Masks
    inner_state: Any
    gradient_average: Any = ()
    pending: Any = ()
    kept_before: Any = ()
    churn: Any = ()
    age: Any = ()

    @property
    def learned(self) -> bool:
        """Whether `learn_masks` made this state, so that the trained tree is dense."""
        return isinstance(self, LearnedState)


class LearnedState(SparseState):
    """Optimizer state of `learn_masks`."""


def sparse_init(tx: optax.GradientTransformation, params: Params) -> tuple[Params, optax.OptState]:
    """The parameters with masks applied, and the optimizer's state: the way into sparse training.

    >>> from cka_sr_jax.sparsity import rst, sparse_init, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), rst(density=0.05))
    >>> params, opt_state = sparse_init(tx, {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)})
    >>> int((params["kernel"] != 0).sum())
    10

    After `learn_masks`, whose trained tree is dense, the parameters come back as they are.

    Args:
      tx: made with `sparsify` or `learn_masks`.
      params: of the model, or the trained tree.

    Raises:
      ValueError: as `get_masks`, also for the wrong order in an `optax.named_chain`; as the rule.
    """
    opt_state = tx.init(params)
    _check_named_order(opt_state)
    states = _find_states(opt_state)
    masks = merge_masks([state.masks for state in states])
    if any(state.learned for state in states):
        return params, opt_state
    return apply_masks(params, masks), opt_state


def get_masks(opt_state: Any) -> Masks:
    """The masks inside an optimizer state, however deep `sparsify` was wrapped.

    Those of several `sparsify` inside one `optax.partition` come as one tree.

    Raises:
      ValueError: the state holds no masks, or several for one parameter; another transform follows
        `sparsify` in an `optax.chain` and would undo the pruning (in an `optax.named_chain` this
        goes unseen, since its state loses the order under jit: `sparse_init` sees it); or
        a transform wraps it that makes pruned weights non-zero, such as `schedule_free`.
    """
    return merge_masks([state.masks for state in _find_states(opt_state)])


def mask_metrics(opt_state: Any) -> dict[str, Float[Array, ""]]:
    """Scalars on the masks inside an optimizer state.

    Returns:
      "density"; and for a rule that changes the masks "churn", how much the last change changed
      (`churn`), and "explored", the share of weights that were kept at least once: R_s, the
      exploration rate of in-time over-parametrization (ITOP; Liu et al. 2021, arXiv 2102.02887).
      Of several `sparsify`, "churn" is the mean over those that change masks, weighted by their
      kept weights; "explored" is missing where `track_explored` is off.

    Raises:
      ValueError: as `get_masks`.
    """
    states = _find_states(opt_state)
    masks = merge_masks([state.masks for state in states])
    metrics = {"density": density(masks)}
    changing = [state for state in states if jax.tree.leaves(state.churn)]
    if not changing:
        return metrics
    sizes = [kept_weights(state.masks) for state in changing]
    shares = [state.churn * size for state, size in zip(changing, sizes, strict=True)]
    metrics["churn"] = sum(shares[1:], shares[0]) / jnp.maximum(sum(sizes[1:], sizes[0]), 1)
    if all(jax.tree.leaves(state.kept_before) for state in changing):
        # Where masks never change, those kept are those explored.
        seen = [
            explored(state.kept_before, state.masks)
            if jax.tree.leaves(state.kept_before)
            else state.masks
            for state in states
        ]
        metrics["explored"] = density(merge_masks(seen))
    return metrics


class Kinds(NamedTuple):
    """What a state of `sparsify` has beside the masks."""

    changes: bool
    explored: bool
    ages: bool


def check_state(state: Any, params: Params, rule: Rule, kinds: Kinds) -> None:
    """Check that a state is one of `sparsify` with this rule.

    Raises:
      ValueError: another, which might train dense without a word.
    """
    made_by_it = isinstance(state, SparseState) and (
        bool(jax.tree.leaves(state.pending)) == kinds.changes
        and all(
            bool(jax.tree.leaves(part)) == bool(has and jax.tree.leaves(state.masks))
            for part, has in (
                (state.gradient_average, rule.gradient_decay),
                (state.kept_before, kinds.explored),
                (state.age, kinds.ages),
            )
        )
    )
    if made_by_it and not jax.tree.leaves(state.masks):  # as of a dense rule
        made_by_it = not jax.tree.leaves(jax.eval_shape(rule.init, jax.random.key(0), params))
    if not made_by_it:
        raise ValueError(
            "this optimizer state is not one of this sparsify: make it with tx.init(params), or "
            "train under masks that you have with static(masks)."
        )
    check_masks(params, state.masks)


def holds_masks(opt_state: Any) -> bool:
    """Whether `sparsify` or `learn_masks` made a part of an optimizer state."""
    return bool(_sparse_states(opt_state))


def _find_states(opt_state: Any) -> list[SparseState]:
    """The states of `sparsify` and `learn_masks` in an optimizer state, checked."""
    found = _sparse_states(opt_state)
    inside = [state for _, outer in found for _, state in _sparse_states(outer.inner_state)]
    if not found or inside:
        raise ValueError(
            f"the optimizer state holds {len(found) + len(inside)} sets of masks and should hold "
            "1: make it with tx = sparsify(optimizer, rule), once."
        )
    states = [state for _, state in found]
    merge_masks([state.masks for state in states])  # no leaf has two
    for path, _ in found:
        _check_wrappers(opt_state, path)
    return states


def _sparse_states(tree: Any) -> list[tuple[Any, SparseState]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, SparseState)
    )
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, SparseState)]


def _check_wrappers(opt_state: Any, path: Any) -> None:
    """Raise ValueError for a transform around `sparsify` that makes pruned weights non-zero."""
    node = opt_state
    for entry in path:
        # The state of a chain is a plain tuple, with an entry for each of its transforms.
        if type(node) is tuple and entry.idx != len(node) - 1:
            raise ValueError(WRONG_ORDER)
        if (kind := type(node).__name__) in UNSAFE:
            does, cure = UNSAFE[kind]
            raise ValueError(
                f"{kind.removesuffix('State')} around sparsify {does}, and the result is not "
                f"sparse: {cure}."
            )
        node = _child(node, entry)


# States of Optax's wrappers that must not go around `sparsify`, and what these do.
AVERAGES = "averages parameters under changing masks"
UNSAFE = {
    "LookaheadState": (AVERAGES, "leave it out"),
    "ScheduleFreeState": (
        AVERAGES,
        "put it inside, as sparsify(optax.contrib.schedule_free(...), rule), or leave it out",
    ),
    "MechanicState": ("scales the updates", "put it inside, as sparsify(mechanize(...), rule)"),
    "SAMState": ("moves the parameters to and fro", "leave it out"),
    "ConditionallyTransformState": (
        "lets gradients pass in place of updates",
        "put it inside, as sparsify(conditionally_transform(...), rule)",
    ),
}

WRONG_ORDER = (
    "sparsify is followed by another transform, which changes the updates that hold pruned weights "
    "at 0: write sparsify(optax.chain(...), rule)."
)


def _check_named_order(opt_state: Any) -> None:
    """The check of a chain for named chains, whose new states still have their order."""
    for path, _ in _sparse_states(opt_state):
        node = opt_state
        for entry in path:
            # Of the transforms in a partition, whose state is a dict too, none follows another.
            if (
                isinstance(node, dict)
                and entry.key != list(node)[-1]
                and not isinstance(node[entry.key], optax.MaskedState)
            ):
                raise ValueError(WRONG_ORDER)
            node = _child(node, entry)


def _child(node: Any, entry: Any) -> Any:
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return getattr(node, entry.name)
    if isinstance(entry, jax.tree_util.SequenceKey):
        return node[entry.idx]
    return node[entry.key]
