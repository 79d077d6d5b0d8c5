"""Proof that stored arrays are what was written: a digest of each, kept beside them as an array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

SEAL = "seal"


class Sealed(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      arrays: {path: array}.
      config: of the run that wrote it, as JSON has it; None where none was given.
      step: after which it was written.
    """

    arrays: dict[str, np.ndarray]
    config: dict[str, Any] | None
    step: int


def sealed(
    step: int, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """The arrays and one more, JSON of the step, the config, a digest of each, and one of these."""
    digests = {path: _digest(array) for path, array in arrays.items()}
    content = {"step": step, "config": config and dict(config), "arrays": digests}
    text = json.dumps({**content, "digest": _digest_of_json(content)})
    return {**arrays, SEAL: np.frombuffer(text.encode(), np.uint8)}


def unsealed(step: int, arrays: Mapping[str, np.ndarray]) -> Sealed:
    """The arrays and the config of `sealed`.

    Raises:
      ValueError: they are not those that were written, or were written at another step.
    """
    arrays = dict(arrays)
    if SEAL not in arrays:
        raise ValueError("it has no digests")
    content = json.loads(arrays.pop(SEAL).tobytes())
    if content.pop("digest", None) != _digest_of_json(content):
        raise ValueError("its digests are not what was written")
    if content["step"] != step:
        raise ValueError(f"it is a copy of the one of step {content['step']}")
    if arrays.keys() != content["arrays"].keys():
        raise ValueError("it has other arrays than were written")
    for path, array in arrays.items():
        if _digest(array) != content["arrays"][path]:
            raise ValueError(f"{path} is not what was written")
    return Sealed(arrays, content["config"], step)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    # As bytes, since bfloat16 has no buffer of its own; not as a copy.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
