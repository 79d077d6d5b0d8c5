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
    try:
        jax.eval_shape(partial(reset_slots, inner), inner_state, masks)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "the inner optimizer's slots are not arranged as the parameters, as those of "
            "optax.flatten and optax.sm3, so a rule that changes masks could not set those of new "
            "weights to 0: use another optimizer, or a rule that keeps its masks."
        ) from error
