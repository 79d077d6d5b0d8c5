"""Variables and masks as safetensors files, dense or only with the kept weights.

A file has one tensor for each leaf, named by its path: "params/head/kernel". Beside these it has
for each mask

- dense: "masks/head/kernel", a bool tensor of the kernel's shape, which any reader understands;
- sparse: "values/head/kernel" in place of the kernel, the kept weights in the order of the flat
  array, and where they are: "bitmap/head/kernel", bit i % 8 of byte i // 8 for weight i, or
  "indices/head/kernel", their uint32 numbers in the flat array, whichever is shorter. A bitmap
  takes 1/32 of the dense float32 kernel at any density; indices take less below density 1/32.

The header's entry "cka_sr_jax" is JSON: {"version": 1, "shapes": {path of a sparse kernel: shape},
"digest": SHA-256 of the shapes and of all tensors}.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from flax import traverse_util

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.export.extra import needed
from cka_sr_jax.export.kept import Kept, kept_weights
from cka_sr_jax.sparsity import Masks, masks_from_paths

_MARK, _VERSION = "cka_sr_jax", 1
_MASKS, _VALUES, _BITMAP, _INDICES = "masks", "values", "bitmap", "indices"
_LARGEST_INDEX = 2**32


class Weights(NamedTuple):
    """What `load_safetensors` reads.

    Attributes:
      variables: {"params": ..., other collections: ...}, nested dicts of NumPy arrays.
      masks: like `variables["params"]`, with `optax.MaskedNode()` at leaves that stay dense; None
        if the file has none.
    """

    variables: dict[str, Any]
    masks: Masks | None


def save_safetensors(
    path: str | Path, variables: Mapping[str, Any], masks: Masks | None = None, sparse: bool = False
) -> None:
    """Write variables and masks to a safetensors file; one that is there is replaced.

    >>> import tempfile
    >>> kernel = np.array([[0.0, 2.0], [3.0, 0.0]], np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/model.safetensors"
    ...     save_safetensors(path, {"params": {"kernel": kernel}}, {"kernel": kernel != 0})
    ...     loaded = load_safetensors(path)
    >>> loaded.variables["params"]["kernel"].tolist(), loaded.masks["kernel"].tolist()
    ([[0.0, 2.0], [3.0, 0.0]], [[False, True], [True, False]])

    Args:
      path: the file; its name is used as it is, with no suffix added.
      variables: {"params": ..., "batch_stats": ...} of arrays, nested by names.
      masks: of `variables["params"]`, as from `get_masks`.
      sparse: store only the kept weights of masked leaves, and where they are.

    Raises:
      ValueError: no collection "params", or one of a name that the format uses; a key with a
        slash; `sparse` without masks; masks that are not those of the parameters.
      ModuleNotFoundError: safetensors is not installed.
    """
    library = _library()
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "the variables have no collection 'params': pass {'params': params}, or what "
            "model.init returns."
        )
    if sparse and masks is None:
        raise ValueError("sparse=True stores what the masks keep: pass masks, or sparse=False.")
    if taken := {_MASKS, _VALUES, _BITMAP, _INDICES} & set(variables):
        raise ValueError(
            f"a collection is called {min(taken)!r}, which the file uses itself: rename it."
        )
    arrays = _named_arrays(variables)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kept in ({} if masks is None else kept_weights(variables["params"], masks)).items():
        if sparse:
            del arrays[f"params/{name}"]
            arrays |= _sparse_arrays(name, kept)
            shapes[name] = kept.mask.shape
        else:
            arrays[f"{_MASKS}/{name}"] = kept.mask
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    mark = json.dumps({"version": _VERSION, "shapes": shapes, "digest": _digest(shapes, arrays)})
    Path(path).write_bytes(library.numpy.save(arrays, metadata={_MARK: mark}))


def load_safetensors(path: str | Path) -> Weights:
    """The variables and the masks of a file of `save_safetensors`, dense or sparse.

    Lists and other nodes come back as dicts by name: {"blocks": {"0": ...}}.

    Raises:
      ValueError: the file is damaged, or something else wrote it.
      ModuleNotFoundError: safetensors is not installed.
    """
    library = _library()
    with open(path, "rb"):  # its errors name the file
        pass
    try:
        with library.safe_open(path, framework="np") as file:
            mark = (file.metadata() or {}).get(_MARK)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except library.SafetensorError as error:
        _damaged(path, str(error), error)
    if mark is None:
        raise ValueError(
            f"{path} was not written by save_safetensors: read it with safetensors.numpy.load_file."
        )
    shapes, digest = _header(path, mark)
    if digest != _digest(shapes, arrays):
        _damaged(path, "its tensors are not what was written")
    masks = {
        name.removeprefix(f"{_MASKS}/"): arrays.pop(name)
        for name in list(arrays)
        if name.startswith(f"{_MASKS}/")
    }
    for name, shape in shapes.items():
        arrays[f"params/{name}"], masks[name] = _dense(path, name, shape, arrays)
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    params = variables.setdefault("params", {})
    return Weights(variables, masks_from_paths(params, masks) if masks else None)


def _library() -> Any:
    needed("safetensors.numpy", "to read and write safetensors files")
    return needed("safetensors", "to read and write safetensors files")


def _named_arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for keys, _ in jax.tree_util.tree_leaves_with_path(variables):
        for key in keys:
            name = jax.tree_util.keystr((key,), simple=True)
            if "/" in name:
                raise ValueError(
                    f"the key {name!r} has a slash, which separates names in the file: rename it."
                )
    return {name: np.asarray(leaf) for name, leaf in leaf_paths(variables)}


def _sparse_arrays(name: str, kept: Kept) -> dict[str, np.ndarray]:
    """A masked leaf as its kept weights, and their places in the shorter of the two forms."""
    flat = kept.mask.ravel()
    values = {f"{_VALUES}/{name}": kept.values}
    indices_bytes = 4 * np.count_nonzero(flat)
    if flat.size > _LARGEST_INDEX or indices_bytes >= math.ceil(flat.size / 8):
        return values | {f"{_BITMAP}/{name}": np.packbits(flat, bitorder="little")}
    return values | {f"{_INDICES}/{name}": np.flatnonzero(flat).astype(np.uint32)}


def _dense(
    path: str | Path, name: str, shape: tuple[int, ...], arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A leaf and its mask from the arrays of `_sparse_arrays`, which are taken out."""
    size = math.prod(shape)
    values, bitmap, indices = (
        arrays.pop(f"{part}/{name}", None) for part in (_VALUES, _BITMAP, _INDICES)
    )
    if bitmap is not None and bitmap.shape == (math.ceil(size / 8),):
        flat = np.unpackbits(bitmap, count=size, bitorder="little").astype(bool)
    elif indices is not None and np.all(indices < size):
        flat = np.zeros(size, bool)
        flat[indices] = True
    else:
        _damaged(path, f"the places of {name} do not fit its shape {shape}")
    if values is None or values.shape != (np.count_nonzero(flat),):
        _damaged(path, f"the values of {name} are not as many as its places")
    weights = np.zeros(size, values.dtype)
    weights[flat] = values
    return weights.reshape(shape), flat.reshape(shape)


def _header(path: str | Path, mark: str) -> tuple[dict[str, tuple[int, ...]], str]:
    """{path: shape} of the sparse leaves, and the digest."""
    try:
        content = json.loads(mark)
        version, shapes, digest = content["version"], content["shapes"], content["digest"]
        found = {name: tuple(map(int, shape)) for name, shape in shapes.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _damaged(path, f"its header says {mark[:80]!r}", error)
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version} of this format and the newest known here is {_VERSION}: "
            "install a newer cka_sr_jax."
        )
    return found, digest


def _digest(shapes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _damaged(path: str | Path, why: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(
        f"{path} is damaged or no safetensors file ({why}): write it again with save_safetensors."
    ) from cause
