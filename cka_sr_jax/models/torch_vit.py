"""Weights of torchvision's and timm's vision transformers, DeiT among them, for `ViT`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from cka_sr_jax.models.vit import SIZES, ViT

# Names of torchvision and of timm, as patterns, and those here.
_NAMES = [
    (r"^(class_token|cls_token)$", "class_token"),
    (r"^(encoder\.pos_embedding|pos_embed)$", "positions"),
    (r"^(conv_proj|patch_embed\.proj)\.", "patches."),
    (r"^(encoder\.layers\.encoder_layer_|blocks\.)(\d+)\.", r"block\2."),
    (r"\.(ln_1|norm1)\.", ".attention_norm."),
    (r"\.(ln_2|norm2)\.", ".mlp_norm."),
    (r"\.(self_attention\.in_proj_|attn\.qkv\.)", ".attention.qkv."),
    (r"\.(self_attention\.out_proj|attn\.proj)\.", ".attention.out."),
    (r"\.mlp\.(0|linear_1|fc1)\.", ".up."),
    (r"\.mlp\.(3|linear_2|fc2)\.", ".down."),
    (r"^(encoder\.ln|norm)\.", "norm."),
    (r"^(heads\.head|head)\.", "head."),
]
_QKV = ("query", "key", "value")


def vit_variables(state: Mapping[str, Any], model: ViT, new_head: Array | None) -> dict[str, Any]:
    """{"params"} for `model`; arguments and errors as for `from_torchvision`."""
    if model.keep_rates:
        raise ValueError(
            f"these weights have no keep scores, and keep_rates={model.keep_rates}: load them into "
            "the ViT without keep_rates, and put them over what model.init returns."
        )
    if "dist_token" in state:
        raise ValueError(
            "the state dict has a distillation token and ViT has none: pass the weights of a DeiT "
            "without one, such as deit_tiny_patch16_224."
        )
    arrays, names = _renamed(state)
    depth = SIZES[model.size][1]
    params = _expected(arrays, model)
    found: dict[str, Any] = {}
    for path, leaf in params.items():
        if new_head is not None and path.startswith("head."):
            zeros = jnp.zeros(leaf.shape)
            kernel = jax.nn.initializers.lecun_normal()
            found[path] = zeros if path.endswith("bias") else kernel(new_head, leaf.shape)
            arrays.pop(path.replace("kernel", "weight"), None)
        elif model.scan and path.startswith("block."):
            rest = path.removeprefix("block.")
            each = [_take(arrays, names, f"block{i}.{rest}", leaf.shape[1:]) for i in range(depth)]
            found[path] = np.stack(each)
        else:
            found[path] = _take(arrays, names, path, leaf.shape)
    if arrays:
        raise ValueError(
            f"the state dict's {names[min(arrays)]!r} has no place in {model.size!r} with {depth} "
            "blocks: pass the weights of a ViT of this size."
        )
    return {"params": traverse_util.unflatten_dict(found, sep=".")}


def _renamed(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """({name here: array}, {name here: name in the state}), with queries, keys and values apart."""
    arrays: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, array in state.items():
        here = name
        for pattern, new in _NAMES:
            here = re.sub(pattern, new, here)
        if ".qkv." in here and np.ndim(array) and np.shape(array)[0] % 3 == 0:
            split = dict(zip(_QKV, np.split(np.asarray(array), 3), strict=True))
            parts = {here.replace("qkv", part): value for part, value in split.items()}
        else:
            parts = {here: array}
        arrays |= parts
        names |= dict.fromkeys(parts, name)
    return arrays, names


def _expected(arrays: Mapping[str, Any], model: ViT) -> dict[str, Any]:
    """{path: shape} of the model for square images with as many patches as there are positions."""
    if "positions" not in arrays:
        raise ValueError(
            "the state dict has no entry 'encoder.pos_embedding' or 'pos_embed': pass that of a "
            "vision transformer of torchvision or timm."
        )
    patches = np.shape(arrays["positions"])[1] - 1
    side = math.isqrt(patches) * model.patch
    channels = np.shape(arrays["patches.weight"])[1:2] if "patches.weight" in arrays else (3,)
    x = jax.ShapeDtypeStruct((1, side, side, *channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return traverse_util.flatten_dict(shapes["params"], sep=".")


def _take(
    arrays: dict[str, Any], names: Mapping[str, str], path: str, shape: tuple[int, ...]
) -> np.ndarray:
    """The array of a parameter, taken out of `arrays`, with its axes in the order of Flax."""
    name = re.sub(r"\.(kernel|scale)$", ".weight", path)
    if name not in arrays:
        raise ValueError(
            f"the state dict has no entry for {path!r}: pass that of a ViT of this size and patch."
        )
    array = np.asarray(arrays.pop(name), np.float32)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif path.endswith("kernel"):
        array = array.T
    # Flax has an axis for the heads.
    heads = array.size == math.prod(shape) and ".attention." in path
    if array.shape != shape and not heads:
        raise ValueError(
            f"the state dict's {names[name]!r} makes a parameter of shape {array.shape} and the "
            f"model's {path!r} has {shape}: pass a model of the weights' size and patch, with "
            "their classes or new_head=jax.random.key(0)."
        )
    return array.reshape(shape)
