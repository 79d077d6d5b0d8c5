"""What each training step reads: which examples, and the batch that the device makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cka_sr_jax.data import augment, batch_indices, normalize
from cka_sr_jax.training.build import RunPlan, train_step
from cka_sr_jax.training.step import TrainState


def training_data(plan: RunPlan) -> dict[str, np.ndarray]:
    """All training examples: {"image": uint8 [n, h, w, c], "label": int32 [n]}."""
    return {"image": np.asarray(plan.dataset.train_images), "label": plan.dataset.train_labels}


def step_indices(plan: RunPlan, step: int) -> np.ndarray:
    """Which examples a step of the run trains on: int32 [batch]."""
    config, examples = plan.config, len(plan.dataset.train_labels)
    return batch_indices(config.seed, step, examples, config.train.batch_size)


def train_on_examples(
    plan: RunPlan, seed: int | jax.Array, beta: float | jax.Array
) -> Callable[..., Any]:
    """`(state, indices, data, axis_name) -> (state, metrics)` of one device.

    `indices` [batch] name the step's examples in `data`, which is `training_data`; the batch is
    made on the device.
    """
    config = plan.config.data
    step = train_step(plan, seed, beta)
    # A key apart from those of the initialization and the masks.
    augment_key = jax.random.fold_in(jax.random.key(seed), 1)

    def train_on(
        state: TrainState, indices: jax.Array, data: dict[str, jax.Array], axis_name: str | None
    ) -> Any:
        images = augment(
            jax.random.fold_in(augment_key, state.step),
            indices,
            data["image"][indices],
            flip=config.flip,
            pad=config.pad,
            pad_mode=config.pad_mode,
        )
        images = normalize(images, plan.mean, plan.std)
        return step(state, {"image": images, "label": data["label"][indices]}, axis_name)

    return train_on
