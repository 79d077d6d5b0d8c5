"""The weights that a run starts from: random ones, or those that `model.start` names."""

from __future__ import annotations

import re
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
from cka_sr_jax.report.parse import parse_stored
from cka_sr_jax.training.config import ConfigError
from cka_sr_jax.training.stored import load_variables

HEAD = "params/head/"
# What weights may lack: a head for these classes, and a ViT's scores of tokens.
_MAY_BE_NEW = re.compile(r"params/(head|keep\d+)/")


class Start(NamedTuple):
    """The weights that are not random.

    Attributes:
      arrays: {path: array}, such as "params/head/kernel" and "batch_stats/stem_bn/mean".
      new: the parts of the model that stay random: "head", "keep0".
    """

    arrays: dict[str, np.ndarray]
    new: tuple[str, ...] = ()


def source_of(config: ConfigDict) -> str:
    """The folder or file that `config.model.start` names for this run's seed."""
    return config.model.start.replace("{seed}", str(config.seed))


def read_start(config: ConfigDict, model: nn.Module, images: Array) -> Start:
    """What `config.model.start` names.

    Args:
      images: that the model can be initialized with.

    Raises:
      ConfigError: nothing is there, it is damaged or has not finished, or it is not of this model.
    """
    if not config.model.start:
        return Start({})
    source = source_of(config)
    try:
        arrays = _flat(_variables(Path(source), model))
        init = partial(model.init, train=False)
        return _fitted(arrays, _flat(jax.eval_shape(init, jax.random.key(0), images)))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ConfigError(f"model.start={source!r} cannot be used: {error}") from error


def with_arrays(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with these arrays in their places, {path: array}."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return traverse_util.unflatten_dict({**flat, **arrays}, sep="/")


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ("params", "batch_stats")
    return traverse_util.flatten_dict({k: tree[k] for k in kinds if tree.get(k)}, sep="/")


def _variables(path: Path, model: nn.Module) -> dict[str, Any]:
    if path.is_dir():
        return _variables_of_run(path)
    if not path.exists():
        raise ValueError("it does not exist; give a finished run's folder or a .safetensors file.")
    library = needed("safetensors", "to start from a safetensors file")
    try:
        state = needed("safetensors.numpy", "to read it").load_file(path)
    except library.SafetensorError as error:
        raise ValueError(f"it is no safetensors file ({error}), and no run's folder.") from error
    if any("/" in name for name in state):  # as `save_safetensors` names them
        return load_safetensors(path).variables
    if not isinstance(model, ResNet | ViT):
        raise ValueError(
            "its weights are named as torchvision and timm do, which fits a ResNet or a ViT, and "
            f"the model is a {type(model).__name__}."
        )
    whole = model.clone(keep_rates=()) if isinstance(model, ViT) else model
    heads = [state[name] for name in ("fc.bias", "head.bias", "heads.head.bias") if name in state]
    fits = bool(heads) and len(heads[0]) == model.num_classes
    loaded = from_torchvision(state, whole, None if fits else jax.random.key(0))
    if not fits:  # the run makes a head from its own seed
        del loaded["params"]["head"]
    return loaded


def _variables_of_run(folder: Path) -> dict[str, Any]:
    result = folder / "result.json"
    if (folder / "config.json").exists():
        if not result.exists():
            raise ValueError("the run has not finished; give its command again, which goes on.")
        if "diverged" in parse_stored(result.read_text()):
            raise ValueError("the run diverged; name another one.")
    return load_variables(folder)


def _fitted(arrays: dict[str, Any], expected: Mapping[str, Any]) -> Start:
    """The arrays in the model's types, without a head of other classes."""
    heads = {path for path in expected if path.startswith(HEAD)}
    if any(path not in arrays or arrays[path].shape != expected[path].shape for path in heads):
        arrays = {path: array for path, array in arrays.items() if path not in heads}
    for path, array in arrays.items():
        if path not in expected:
            raise ValueError(f"it has {path!r}, and the model with these options has no such part.")
        if array.shape != expected[path].shape:
            raise ValueError(
                f"its {path!r} has shape {array.shape} and the model's is {expected[path].shape}; "
                "name weights of the same model, options, channels and size of image."
            )
    new = [path for path in expected if path not in arrays]
    if missing := [path for path in new if not _MAY_BE_NEW.match(path)]:
        raise ValueError(f"it lacks {missing[0]!r} of the model; name weights of the same model.")
    parts = dict.fromkeys(path.split("/")[1] for path in new)
    cast = {path: np.asarray(array, expected[path].dtype) for path, array in arrays.items()}
    return Start(cast, tuple(parts))
