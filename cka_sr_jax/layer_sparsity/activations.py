"""Which activations layers merge over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

# Functions of `jax.nn` that layers do not merge over -> the reason.
REFUSED = {
    "leaky_relu": "leaky_relu is linear on non-negative values only, and its output may be "
    "negative",
    "elu": "the output of elu may be negative, which the next layer's condition does not cover",
    "celu": "the output of celu may be negative, which the next layer's condition does not cover",
    "selu": "the output of selu may be negative, which the next layer's condition does not cover",
    "relu6": "relu6 is linear below 6 only, which no condition on weights ensures",
    "hard_tanh": "hard_tanh is linear on [-1, 1] only, which no condition on weights ensures",
    "tanh": "tanh saturates, so it is linear nowhere",
    "sigmoid": "sigmoid saturates, so it is linear nowhere",
    "softplus": "softplus is linear nowhere",
    "gelu": "gelu is linear nowhere",
    "silu": "silu is linear nowhere",
}


def check_activation(activation: str | Callable[..., Any] | None) -> str:
    """How layers merge over this activation: "relu" (where the weights allow it) or "linear".

    ReLU is the identity on non-negative values, and its output is non-negative. So a layer with
    W >= 0 and b >= 0 after a ReLU merges with the next layer over its own ReLU. Without an
    activation (None, "linear", "identity") layers always merge.

      >>> check_activation("relu"), check_activation(None)
      ('relu', 'linear')

    Args:
      activation: a name or a function such as `nn.relu`.

    Raises:
      ValueError: any other activation, with the reason.
    """
    while isinstance(activation, partial):
        activation = activation.func
    name = activation
    if not isinstance(activation, str):
        name = getattr(activation, "__name__", type(activation).__name__)
    if activation is None or name in ("linear", "identity"):
        return "linear"
    if name == "relu":
        return "relu"
    reason = REFUSED.get({"swish": "silu"}.get(str(name), str(name)), f"{name} is not known")
    raise ValueError(f"layers do not merge over {name}: {reason}; use relu.")
