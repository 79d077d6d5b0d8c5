"""Chains of dense layers as .npz files, which load back as parameters of a plain MLP."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cka_sr_jax.layer_sparsity.chain import Chain
from cka_sr_jax.layer_sparsity.parameters import from_mlp, to_mlp_params


def save_mlp(path: str | Path, chain: Chain) -> None:
    """Write a chain of dense layers: "hidden0.kernel", "hidden0.bias", ..., "head.bias".

    NumPy has no bfloat16, so such weights come back as float32.

    Args:
      path: the file; its name is used as it is, with no suffix added.
      chain: of dense layers.

    Raises:
      ValueError: as `to_mlp_params`.
    """
    _, params = to_mlp_params(chain)
    arrays = {f"{n}.{key}": _storable(a) for n, layer in params.items() for key, a in layer.items()}
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _storable(array: Any) -> np.ndarray:
    """The array, in float32 if NumPy does not know its type and would load it as raw bytes."""
    array = np.asarray(array)
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def load_mlp(path: str | Path) -> tuple[tuple[int, ...], dict[str, dict[str, Any]]]:
    """(hidden, params) of a file of `save_mlp`, for a plain `cka_sr_jax.models.MLP`.

      hidden, params = load_mlp("merged.npz")
      outputs = MLP(len(params["head"]["bias"]), hidden).apply({"params": params}, x, train=False)

    Returns:
      The widths of the hidden layers, and {"hidden0": {"kernel", "bias"}, ..., "head": ...}.

    Raises:
      ValueError: the file does not hold the arrays of an MLP.
      FileNotFoundError: there is no such file.
    """
    params: dict[str, dict[str, Any]] = {}
    if not zipfile.is_zipfile(path):
        Path(path).stat()  # raises FileNotFoundError
        raise ValueError(f"{path} is not an .npz archive: pass a file that save_mlp wrote.")
    with np.load(path) as arrays:
        for name, array in arrays.items():
            layer, _, key = name.partition(".")
            params.setdefault(layer, {})[key] = array
    return to_mlp_params(from_mlp(params))
