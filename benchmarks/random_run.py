"""A plan of a run on random images, for benchmarks of whole steps and of the loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from cka_sr_jax.data import Dataset
from cka_sr_jax.training import RunPlan, build, default_config


def random_plan(
    model: str, options: dict[str, Any], shape: tuple[int, int, int], **fields: Any
) -> RunPlan:
    """The plan of a run of `model` with its options on 1,024 random images of `shape`.

    Args:
      fields: {config field, with "__" for ".": value}.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1024, *shape), np.uint8)
    labels = rng.integers(0, 10, 1024).astype(np.int32)
    empty = images[:0], labels[:0]
    data = Dataset("random", images, labels, *empty, images[:10], labels[:10], 10)
    config = default_config()
    config.model.name = model
    config.model.options.update(options)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    build.load_dataset = lambda _: data  # in place of reading config.data
    return build.build_plan(config)
