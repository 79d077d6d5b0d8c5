"""The weights that a run starts from: random ones, or `model.start`'s where that is set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax.export import load_safetensors
from cka_sr_jax.export.extra import needed
from cka_sr_jax.models import ResNet, ViT, from_torchvision
from cka_sr_jax.training.config import ConfigError, config_errors
from cka_sr_jax.training.stored import load_variables

HEAD = "params/head/"  # of every model here; for other classes it is new


class Start(NamedTuple):
    """The weights that are not random.

    Attributes:
      arrays: {path: array}, such as "params/head/kernel" and "batch_stats/stem_bn/mean".
      new: the parts of the model that stay random, in short: "head", "keep0".
    """

    arrays: dict[str, np.ndarray]
    new: tuple[str, ...]


def read_start(config: ConfigDict, model: nn.Module, images: Array) -> Start:
    """What `config.model.start` names, of the parts that the model has.

    Args:
      images: that the model can be initialized with.

    Raises:
      ConfigError: nothing is there, or it does not fit the model.
    """
    if not config.model.start:
        return Start({}, ())
    source = config.model.start.replace("{seed}", str(config.seed))
    with config_errors():
        arrays = _flat(_variables(source, model))
    init = partial(model.init, train=False)
    expected = _flat(jax.eval_shape(init, jax.random.key(0), images))
    for path, array in list(arrays.items()):
        if path not in expected:
            raise ConfigError(
                f"model.start={source!r} has {path!r}, and {config.model.name} with these options "
                "has no such part: name a run of the same model."
            )
        if array.shape != expected[path].shape:
            if path.startswith(HEAD):
                del arrays[path]
                continue
            raise ConfigError(
                f"model.start={source!r} has {path!r} of shape {array.shape}, and the model's is "
                f"{expected[path].shape}: name a run of the same model, images and options."
            )
    if any(path.startswith(HEAD) and path not in arrays for path in expected):  # whole or not
        arrays = {path: array for path, array in arrays.items() if not path.startswith(HEAD)}
    new = dict.fromkeys(path.split("/")[1] for path in expected if path not in arrays)
    return Start(arrays, tuple(new))


def put(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with these arrays in their places."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return traverse_util.unflatten_dict({**flat, **arrays}, sep="/")


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ("params", "batch_stats")
    return traverse_util.flatten_dict({k: tree[k] for k in kinds if tree.get(k)}, sep="/")


def _variables(source: str, model: nn.Module) -> dict[str, Any]:
    path = Path(source)
    if path.is_dir():
        return load_variables(path)
    if not path.exists():
        raise ConfigError(
            f"model.start={source!r} does not exist: give a finished run's folder or a "
            ".safetensors file."
        )
    library = needed("safetensors.numpy", "to start from a safetensors file")
    try:
        state = library.load_file(path)
    except Exception as error:
        raise ConfigError(
            f"model.start={source!r} is no safetensors file and no run's folder ({error})."
        ) from error
    if any("/" in name for name in state):  # as `save_safetensors` names them
        return load_safetensors(path).variables
    if not isinstance(model, ResNet | ViT):
        raise ConfigError(
            f"model.start={source!r} has weights as torchvision and timm name them, which only a "
            f"ResNet or a ViT can take, and the model is a {type(model).__name__}."
        )
    whole = model.clone(keep_rates=()) if isinstance(model, ViT) else model
    heads = [state[name] for name in ("fc.bias", "head.bias", "heads.head.bias") if name in state]
    fits = bool(heads) and len(heads[0]) == model.num_classes
    loaded = from_torchvision(state, whole, None if fits else jax.random.key(0))
    if not fits:  # the run has a random head of its own seed
        del loaded["params"]["head"]
    return loaded
