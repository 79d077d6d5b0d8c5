"""Multilayer perceptron."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cka_sr_jax.models.layers import at_least_float32, kaiming_normal, sow_feature


class MLP(nn.Module):
    """ReLU layers "hidden0", "hidden1", ..., then "head"; LeNet-300-100 by default.

    Features: one stage "hidden" of each hidden layer's output, after its ReLU.

    Raises:
      ValueError: a layer without units.
    """

    num_classes: int
    hidden: tuple[int, ...] = (300, 100)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Refuse a layer without units."""
        if any(isinstance(width, int) and width < 1 for width in self.hidden):
            raise ValueError(
                f"hidden={tuple(self.hidden)}: expected 1 unit or more in each layer, such as "
                "(300, 100)."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b ..."], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` changes nothing."""
        x = x.reshape(x.shape[0], -1)  # len(x) would need a number: jax.export has none
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, kernel_init=kaiming_normal, dtype=self.dtype, name=f"hidden{i}")(x)
            x = nn.relu(x)
            sow_feature(self, "hidden", x)
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)
