"""What only some of these files need, and the sentence where it is missing."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, purpose: str) -> Any:
    """The module, imported.

    >>> needed("json", "to write JSON").dumps([1])
    '[1]'

    Raises:
      ModuleNotFoundError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{package} is not installed, and it is needed {purpose}: pip install "
            "'cka_sr_jax[export]'.",
            name=package,
        ) from error
