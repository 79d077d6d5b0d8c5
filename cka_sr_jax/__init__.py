"""Sparse neural-network training in JAX/Flax with CKA-SR.

The names of the first ten minutes are here: the penalty (`cka_penalty`, `stage_features`), the
sparse optimizer (`sparsify`, `sparse_init`, `make_rule`, `apply_masks`, `get_masks`, `density`),
the similarity itself (`cka`, `cka_matrix`, `compare_cka` over a data set), and what to look at:
`plot_cka`, which needs Matplotlib, and `summary`. The rest of the library is in
`cka_sr_jax.similarity`, `sparsity`, `layer_sparsity` and `accounting`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cka_sr_jax.similarity import cka, cka_matrix, cka_penalty, compare_cka, stage_features
from cka_sr_jax.sparsity import (
    apply_masks,
    density,
    get_masks,
    make_rule,
    sparse_init,
    sparsify,
    static,
)

if TYPE_CHECKING:
    from cka_sr_jax.accounting import summary
    from cka_sr_jax.report import plot_cka as plot_cka

__version__ = "0.1.0"

__all__ = [
    "apply_masks",
    "cka",
    "cka_matrix",
    "cka_penalty",
    "compare_cka",
    "density",
    "get_masks",
    "make_rule",
    "sparse_init",
    "sparsify",
    "stage_features",
    "static",
    "summary",
]

# Imported when they are asked for: the one imports Flax, the other Matplotlib, which may be missing
# and is therefore not in __all__.
_LATER = {"summary": "cka_sr_jax.accounting", "plot_cka": "cka_sr_jax.report"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LATER[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "plot_cka draws with Matplotlib, which is not installed: pip install matplotlib.",
            name="matplotlib",
        ) from error


def __dir__() -> list[str]:
    return [*globals(), *_LATER]
