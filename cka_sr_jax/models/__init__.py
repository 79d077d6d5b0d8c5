"""Models (Flax Linen) that record the features that CKA-SR compares.

Each takes float images [b, h, w, c] and `train`, computes in its `dtype` (float32, bfloat16 or
float64; the parameters stay float32), returns logits in at least float32, and sows its features
from the top-level module:

    logits, mutables = model.apply(
        variables, x, train=True, mutable=["features", "batch_stats"]
    )
    loss = task_loss(logits) + beta * cka_penalty(mutables["features"])

`init` sows nothing, so that `variables` holds no features that `apply` would append to.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn

from cka_sr_jax._errors import unknown
from cka_sr_jax.models.lenet import LeNet5
from cka_sr_jax.models.mlp import MLP
from cka_sr_jax.models.resnet import CifarResNet

__all__ = ["MLP", "CifarResNet", "LeNet5", "UnknownOptionError", "create_model"]

_MODELS: dict[str, type[nn.Module]] = {"mlp": MLP, "lenet5": LeNet5}
# The usual ones, for the message.
_RESNETS = [f"resnet{depth}" for depth in (18, 20, 32, 34, 44, 56, 110)]


class UnknownOptionError(ValueError):
    """An option that a model does not have."""


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The model of that name: "mlp", "lenet5", or "resnetN" with N = 6n + 2, or 18 or 34.

    Options are the model's own fields, such as `hidden`, `width` or `dtype`.

    Raises:
      UnknownOptionError: an option that the model does not have; it is a ValueError.
      ValueError: unknown name; a ResNet of another depth.
    """
    fixed: dict[str, Any] = {"num_classes": num_classes}
    if resnet := re.fullmatch(r"resnet(\d+)", name):
        model: type[nn.Module] = CifarResNet
        fixed["depth"] = int(resnet[1])
    elif name in _MODELS:
        model = _MODELS[name]
    else:
        raise ValueError(unknown("model", name, [*_MODELS, *_RESNETS]))
    try:
        model(**fixed)  # the name before any option: a ResNet may have no such depth
    except ValueError as error:
        raise ValueError(f"Unknown model {name!r}, since {error}") from error
    fields = {field.name for field in dataclasses.fields(model)}
    accepted = fields - {"parent", "name"} - set(fixed)
    for option in options:
        if option not in accepted:
            raise UnknownOptionError(unknown(f"option of {name}", option, accepted))
    return model(**fixed, **options)
