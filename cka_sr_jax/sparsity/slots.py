"""The inner optimizer's slots: its arrays of a parameter's shape, such as momentum."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cka_sr_jax.sparsity.masks import Masks, is_dense


def reset_slots(inner: optax.GradientTransformation, inner_state: Any, kept: Masks) -> Any:
    """The inner state with 0 in every parameter-shaped slot where `kept` is False."""

    def reset(slot: Any, mask: Any) -> Any:
        # Optimizers may leave a parameter out of a slot (muon) or factor the slot (adafactor).
        if is_dense(mask) or is_dense(slot) or slot.shape != mask.shape:
            return slot
        return jnp.where(mask, slot, jnp.zeros_like(slot))

    return optax.tree_utils.tree_map_params(inner, reset, inner_state, kept, is_leaf=is_dense)


def check_slots(inner: optax.GradientTransformation, inner_state: Any, masks: Masks) -> None:
    """Raise ValueError for an optimizer whose slots cannot be emptied weight by weight."""

    def check(slot: Any, mask: Any) -> Any:
        several = not (is_dense(mask) or is_dense(slot)) and slot.ndim > mask.ndim
        if several and slot.shape[slot.ndim - mask.ndim :] == mask.shape:
            raise ValueError(f"a slot of shape {slot.shape} for a parameter of {mask.shape}")
        return slot

    try:
        jax.eval_shape(partial(reset_slots, inner), inner_state, masks)
        optax.tree_utils.tree_map_params(inner, check, inner_state, masks, is_leaf=is_dense)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            "the inner optimizer's slots are not arranged as the parameters, as those of "
            "optax.flatten, optax.sm3 and optax.lbfgs, so a rule that changes masks could not set "
            "those of new weights to 0: use another optimizer, or a rule that keeps its masks."
        ) from error
