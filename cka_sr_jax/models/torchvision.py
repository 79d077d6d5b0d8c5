"""Weights of torchvision's ResNets and ViTs, and of timm's, for the models here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from cka_sr_jax.models.layers import kaiming_normal
from cka_sr_jax.models.resnet import ResNet
from cka_sr_jax.models.torch_vit import vit_variables
from cka_sr_jax.models.vit import ViT

# Names of modules here and there; the conv and norm of a block have the same name in both.
_MODULES = {
    "stem": "conv1",
    "stem_bn": "bn1",
    "head": "fc",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# {rank: which axis of PyTorch's array each axis here is}: kernels alone have more than one.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
# PyTorch counts the batches of each BatchNorm; nothing here uses the count.
_UNUSED = "num_batches_tracked"


def from_torchvision(
    state: Mapping[str, Any], model: nn.Module, new_head: Array | None = None
) -> dict[str, Any]:
    """The variables of `model` from a state dict of torchvision's or timm's ResNet or ViT.

    For `create_model("resnet18", 1000, stem="imagenet")`, so for 34, 50, 101 and 152, and for
    `create_model("vit-base", 1000)`, -small and -tiny: torchvision's vit_b_16, timm's
    vit_*_patch16 and deit_*_patch16 (without distillation). Kernels change from [out, in, h, w] to
    [h, w, in, out] and from [out, in] to [in, out], and all arrays become float32. The model then
    computes what the PyTorch model does in evaluation, for images [b, h, w, c] in place of
    [b, c, h, w]; a ViT for images of the size that the weights are for.

    PyTorch writes such a dict with `safetensors.torch.save_file(model.state_dict(), path)`, and
    `safetensors.numpy.load_file(path)` reads it without PyTorch.

    >>> from cka_sr_jax.models import ResNet, from_torchvision
    >>> try:
    ...     from_torchvision({}, ResNet(1000, depth=18, stem="imagenet"))
    ... except ValueError as error:
    ...     print(error)
    the state dict has no entry 'bn1.bias': pass that of a torchvision ResNet-18.

    Args:
      state: {name: array}, such as "layer1.0.conv1.weight".
      model: a `ResNet` of four stages, or a `ViT` without `keep_rates`.
      new_head: a key; the head is then initialized with it, for another number of classes, and
        that of the state is left aside.

    Returns:
      {"params"}, and of a ResNet also "batch_stats".

    Raises:
      ValueError: another model; an entry is missing, has another shape than the model's, or has no
        place in the model.
    """
    if isinstance(model, ViT):
        return vit_variables(state, model, new_head)
    if not isinstance(model, ResNet) or model.depth not in (18, 34, 50, 101, 152):
        raise ValueError(
            f"torchvision's weights do not fit {_name(model)}: pass a ViT, or a ResNet of depth "
            "18, 34, 50, 101 or 152, such as create_model('resnet18', 1000, stem='imagenet')."
        )
    channels = np.shape(state["conv1.weight"])[1:2] if "conv1.weight" in state else (3,)
    x = jax.ShapeDtypeStruct((1, 64, 64, *channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    leaves = traverse_util.flatten_dict(shapes)
    names = {path: _torch_name(path[1:]) for path in leaves}
    heads = [path for path in leaves if new_head is not None and path[1] == "head"]
    if missing := {names[path] for path in leaves if path not in heads} - set(state):
        raise ValueError(
            f"the state dict has no entry {min(missing)!r}: pass that of a torchvision "
            f"ResNet-{model.depth}."
        )
    if more := {name for name in state if not name.endswith(_UNUSED)} - set(names.values()):
        raise ValueError(
            f"the state dict's {min(more)!r} has no place in ResNet-{model.depth}: pass the "
            "weights of a ResNet of this depth, without further layers."
        )
    found = {
        path: _initial(new_head, path[-1], leaf.shape)
        if path in heads
        else _converted(state, names[path], leaf.shape)
        for path, leaf in leaves.items()
    }
    return traverse_util.unflatten_dict(found)


def _name(model: nn.Module) -> str:
    depth = getattr(model, "depth", None)
    return type(model).__name__ if depth is None else f"a {type(model).__name__} of depth {depth}"


def _torch_name(path: tuple[str, ...]) -> str:
    """("stage2_block0", "shortcut_conv", "kernel") -> "layer2.0.downsample.0.weight"."""
    *modules, leaf = path
    blocks = [re.sub(r"^stage(\d+)_block(\d+)$", r"layer\1.\2", module) for module in modules]
    return ".".join([*(_MODULES.get(part, part) for part in blocks), _LEAVES.get(leaf, leaf)])


def _initial(key: Any, leaf: str, shape: tuple[int, ...]) -> Array:
    """A parameter of the head as the model starts with it."""
    return (kaiming_normal if leaf == "kernel" else nn.initializers.zeros)(key, shape, jnp.float32)


def _converted(state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The entry of the state dict with its axes in the order of Flax."""
    array = np.asarray(state[name], np.float32)
    axes = _AXES[len(shape)]
    expected = tuple(shape[i] for i in np.argsort(axes))
    if array.shape != expected:
        raise ValueError(
            f"the state dict's {name!r} has shape {array.shape} and the model's is {expected}: "
            "pass a model with stem='imagenet', without a width of its own, and with the classes "
            "of the weights or new_head=jax.random.key(0)."
        )
    return array.transpose(axes)
