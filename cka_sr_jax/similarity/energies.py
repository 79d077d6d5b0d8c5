"""How much a penalty charges a pair of layers: its similarity, or an energy of the angle between.

The plain similarity s charges little more for layers that are all but equal than for layers that
are alike, and its gradient falls with the distance of two layers. The energies grow the faster the
closer two layers are, as charges that repel each other; where two layers are exactly equal their
gradient is 0 too. They are those of HE-CKA (arXiv 2411.00259, with the offsets of its code), which
pushes the members of an ensemble apart.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Energy = Literal["none", "log", "inverse", "inverse_square"]

# Keep the angle of equal layers from 0, where arccos has no gradient, and the energies finite.
SIMILARITY_MARGIN, ANGLE_MARGIN = 3e-4, 1e-3
POWERS = {"inverse": 1, "inverse_square": 2}


def energy_of(similarity: Float[Array, "..."], energy: str) -> Float[Array, "..."]:
    """The charge for each similarity s in [-1, 1], elementwise; it rises with s.

      theta = arccos(s / (1 + 3e-4)), in radians;  c = 1e-3
      "none":            s
      "log":             log(1 / (theta + c))
      "inverse":         (1 + c) / (theta + c)
      "inverse_square":  (1 + c) / (theta^2 + c)

    >>> [f"{value:.2f}" for value in energy_of(jnp.array([0.0, 0.9, 1.0]), "log")]
    ['-0.45', '0.79', '3.67']

    Args:
      energy: its name.

    Raises:
      ValueError: an unknown name.
    """
    if energy == "none":
        return similarity
    # Beyond 1 lies rounding alone, and what imprecise products make: it has no angle.
    largest = 1 + SIMILARITY_MARGIN / 2
    theta = jnp.arccos(jnp.clip(similarity, -largest, largest) / (1 + SIMILARITY_MARGIN))
    if energy == "log":
        return -jnp.log(theta + ANGLE_MARGIN)
    if energy in POWERS:
        return (1 + ANGLE_MARGIN) / (theta ** POWERS[energy] + ANGLE_MARGIN)
    raise ValueError(
        f"energy={energy!r} is unknown: use 'none', 'log', 'inverse' or 'inverse_square'."
    )
