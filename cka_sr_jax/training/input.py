"""What each step reads, and the batch that the device makes of it.

This alone knows where a run's images are:

                       in memory                        streamed
  `training_data`      all examples, on every device    nothing
  a `Feed`'s shards    indices of the step's examples   their crops, labels and indices
  `train_on_examples`  takes the examples from the data, or from the shard
  `evaluation_shards`  slices of the arrays             decoded batches

A shard is the whole batch of a set in memory, and of a streamed one the rows that this process's
devices take (`map_devices` with `own_part`). Either way it is a function of the plan's seed and the
step, so that nothing of it is in a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np

from cka_sr_jax.data import (
    EvaluationBatches,
    Images,
    Labels,
    Prefetched,
    StreamedImages,
    TrainingBatches,
    augment,
    batch_indices,
    eval_batches,
    normalize,
)
from cka_sr_jax.training.build import RunPlan, train_step
from cka_sr_jax.training.config import config_errors
from cka_sr_jax.training.parallel import own_rows
from cka_sr_jax.training.step import TrainState


def training_data(plan: RunPlan) -> dict[str, np.ndarray]:
    """All training examples: {"image": uint8 [n, h, w, c], "label": int32 [n]}; {} if streamed."""
    if plan.dataset.is_streamed:
        return {}
    return {
        "image": np.asarray(plan.dataset.train_images),
        "label": np.asarray(plan.dataset.train_labels),
    }


def own_numbers(plan: RunPlan) -> dict[str, Any]:
    """What a run's steps need beside the data, and what runs of one program differ in."""
    return {"seed": np.uint32(plan.config.seed), "beta": np.float32(plan.config.penalty.beta)}


def step_indices(plan: RunPlan, step: int) -> np.ndarray:
    """Which examples a step of the run trains on: int32 [batch]."""
    config, examples = plan.config, len(plan.dataset.train_labels)
    return batch_indices(config.seed, step, examples, config.train.batch_size)


class Feed:
    """The shards of a run's steps in order, for `with`.

    Attributes:
      waited: seconds for which the devices had nothing to do but wait for data so far; None of a
        set in memory, where they never do.
    """

    waited: float | None = None

    def __init__(self, plan: RunPlan, first_step: int) -> None:
        """Start at `first_step`."""
        self._plan, self._steps = plan, iter(range(first_step, plan.steps))

    def next(self, running: Any) -> Any:
        """The next step's shard.

        Args:
          running: arrays that the last step computes, maybe still; None at first.

        Raises:
          ConfigError: a record of a streamed set is damaged.
        """
        return step_indices(self._plan, next(self._steps))

    def __enter__(self) -> Feed:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Nothing; a streamed set's threads and processes end."""


class StreamFeed(Feed):
    """A feed whose batches are decoded ahead, by `data.workers`."""

    def __init__(self, plan: RunPlan, first_step: int) -> None:
        """Start to decode the batch of `first_step`."""
        config, images = plan.config, plan.dataset.train_images
        assert isinstance(images, StreamedImages)
        batch_size, steps = config.train.batch_size, range(first_step, plan.steps)
        rows = own_rows(plan.devices, batch_size)
        source = TrainingBatches(images, config.seed, batch_size, steps, rows)
        self._batches = Prefetched(source, config.data.workers)
        self._before: Any = None
        self.waited: float = 0.0

    def next(self, running: Any) -> Any:
        """As `Feed`; no more than two steps are at the devices, since each holds its batch."""
        jax.block_until_ready(self._before)
        self._before = running
        if self._batches.ready:
            waits_since = None
        else:
            jax.block_until_ready(running)  # from here on the devices have nothing to do
            waits_since = time.perf_counter()
        with config_errors():
            batch = next(self._batches)
        if waits_since is not None:
            self.waited += time.perf_counter() - waits_since
        return batch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End the threads and processes."""
        self._batches.close()


def open_feed(plan: RunPlan, first_step: int) -> Feed:
    """The shards of the plan's steps from `first_step` on."""
    return (StreamFeed if plan.dataset.is_streamed else Feed)(plan, first_step)


def train_on_examples(
    plan: RunPlan, seed: int | jax.Array, beta: float | jax.Array, may_change: bool = True
) -> Callable[..., Any]:
    """`(state, shard, data, axis_name) -> (state, metrics)` of one device.

    `shard` is a device's part of what the plan's `Feed` gives, and `data` is `training_data`; the
    batch is made on the device.

    Args:
      may_change: False for a step at which the masks stay.
    """
    config = plan.config.data
    step = train_step(plan, seed, beta, may_change)
    # A key apart from those of the initialization and the masks.
    augment_key = jax.random.fold_in(jax.random.key(seed), 1)

    def train_on(state: TrainState, shard: Any, data: dict[str, Any], axis_name: str | None) -> Any:
        if plan.dataset.is_streamed:
            indices, images, labels = shard["index"], shard["image"], shard["label"]
        else:
            indices, images, labels = shard, data["image"][shard], data["label"][shard]
        images = augment(
            jax.random.fold_in(augment_key, state.step),
            indices,
            images,
            flip=config.flip,
            pad=config.pad,
            pad_mode=config.pad_mode,
        )
        images = normalize(images, plan.mean, plan.std)
        return step(state, {"image": images, "label": labels}, axis_name)

    return train_on


def evaluation_shards(
    plan: RunPlan, images: Images, labels: Labels, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once and in order: {"image", "label", "weight"}, the weight 0 of padding.

    Raises:
      ConfigError: a record of a streamed set is damaged.
    """
    if not isinstance(images, StreamedImages):
        for indices, weights in eval_batches(len(labels), batch_size):
            yield {"image": images[indices], "label": labels[indices], "weight": weights}
        return
    source = EvaluationBatches(images, batch_size, own_rows(plan.devices, batch_size))
    with config_errors(), Prefetched(source, plan.config.data.workers) as batches:
        yield from batches
