"""A step's metrics as one array, since thousands of single numbers take long to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@flax.struct.dataclass
class PackedMetrics:
    """Metrics of a step, or of the same step of several runs.

    Attributes:
      values: float32; the last axis has a place for each metric.
      names: their names.
    """

    values: Float[Array | np.ndarray, "*runs m"]
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def unpack(self, run: int | None = None) -> dict[str, float]:
        """{name: value}, of one of several runs if `run` says which."""
        values = self.values if run is None else self.values[run]
        return dict(zip(self.names, values.tolist(), strict=True))


def pack(metrics: Mapping[str, Any]) -> PackedMetrics:
    """The metrics, which are scalars."""
    return PackedMetrics(
        jnp.stack([jnp.asarray(value, jnp.float32) for value in metrics.values()]), tuple(metrics)
    )
