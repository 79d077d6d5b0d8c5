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
from cka_sr_jax.models.compact import Compacted, compact, tied_channels
from cka_sr_jax.models.dag import DAG, edge_matrices, live_nodes, remove_edges
from cka_sr_jax.models.lenet import LeNet5
from cka_sr_jax.models.mlp import MLP
from cka_sr_jax.models.resnet import ResNet
from cka_sr_jax.models.tokens import cka_with_other_tokens
from cka_sr_jax.models.torchvision import from_torchvision
from cka_sr_jax.models.vgg import VGG
from cka_sr_jax.models.vit import ViT
from cka_sr_jax.models.wide_resnet import WideResNet

__all__ = [
    "DAG",
    "MLP",
    "VGG",
    "Compacted",
    "LeNet5",
    "ResNet",
    "UnknownOptionError",
    "ViT",
    "WideResNet",
    "cka_with_other_tokens",
    "compact",
    "create_model",
    "default_options",
    "edge_matrices",
    "from_torchvision",
    "live_nodes",
    "remove_edges",
    "stacked_layers",
    "tied_channels",
]

# Each name as a pattern, whose groups are the values of these fields.
_MODELS: list[tuple[str, type[nn.Module], tuple[str, ...]]] = [
    ("mlp", MLP, ()),
    ("lenet5", LeNet5, ()),
    (r"resnet(\d+)", ResNet, ("depth",)),
    (r"vgg(\d+)", VGG, ("depth",)),
    (r"wrn(\d+)-(\d+)", WideResNet, ("depth", "widening")),
    (r"vit-(\w+)", ViT, ("size",)),
    (r"dag(\d+)", DAG, ("nodes",)),
]
# The usual ones, for the message.
_USUAL = [
    *("mlp", "lenet5", "vgg16", "vgg19", "wrn16-4", "wrn22-2", "wrn28-10"),
    *("vit-tiny", "vit-small32", "dag4"),
    *(f"resnet{depth}" for depth in (18, 20, 32, 34, 44, 50, 56, 101, 110, 152)),
]


class UnknownOptionError(ValueError):
    """An option that a model does not have."""


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The model of that name, with a head of `num_classes` outputs.

    | name | model | parameters for 10 classes |
    |---|---|---:|
    | mlp | `MLP` | |
    | lenet5 | `LeNet5` | 61,706 (28x28x1) |
    | resnetN, N = 6n + 2 | `ResNet` of three stages | 272,474 (resnet20) |
    | resnet18, 34, 50, 101, 152 | `ResNet` of four stages | 11,173,962 (resnet18) |
    | vgg16, vgg19 | `VGG` | 14,724,042 (vgg16) |
    | wrnD-K, D = 6n + 4 | `WideResNet` | 36,479,194 (wrn28-10) |
    | vit-tiny, small, base, small32, micro | `ViT` | 5,526,346 (vit-tiny, 224x224x3) |
    | dagN, N nodes a stage | `DAG` | 218,823 (dag4) |

    Options are the model's own fields, such as `hidden`, `width` or `dtype`. The ResNets have the
    stem for small images; `create_model("resnet50", 1000, stem="imagenet")` is that for ImageNet.

    Raises:
      UnknownOptionError: an option that the model does not have; it is a ValueError.
      ValueError: unknown name; a depth that the model does not have.
    """
    model, fixed = _find(name)
    fixed["num_classes"] = num_classes
    try:
        model(**fixed)  # the name before any option: there may be no such depth
    except ValueError as error:
        raise ValueError(f"Unknown model {name!r}, since {error}") from error
    fields = {field.name for field in dataclasses.fields(model)}
    accepted = fields - {"parent", "name"} - set(fixed)
    for option in options:
        if option not in accepted:
            raise UnknownOptionError(unknown(f"option of {name}", option, accepted))
    return model(**fixed, **options)


def default_options(name: str) -> dict[str, Any]:
    """{option: its default} of the model of that name, for `create_model`.

      >>> default_options("vit-tiny")["keep_rates"]
      ()

    Raises:
      ValueError: unknown name.
    """
    model, fixed = _find(name)
    return {
        field.name: field.default
        for field in dataclasses.fields(model)
        if field.default is not dataclasses.MISSING
        and field.name not in (*fixed, "parent", "name", "dtype")
    }


def stacked_layers(model: nn.Module | None) -> dict[str, int]:
    """{path pattern: leading axes that count layers} of a model's parameters, as rules take it.

    It is the model's own `stacked`; most models have none, and then it is empty, as for None.

      >>> stacked_layers(create_model("vit-tiny", 10, scan=True))
      {'block': 1}
    """
    return dict(getattr(model, "stacked", {}))


def _find(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a model, and the fields that its name says."""
    for pattern, model, numbers in _MODELS:
        if match := re.fullmatch(pattern, name):
            given = [int(text) if text.isdigit() else text for text in match.groups()]
            return model, dict(zip(numbers, given, strict=True))
    raise ValueError(unknown("model", name, _USUAL))
