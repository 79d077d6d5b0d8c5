"""Sparse neural-network training in JAX/Flax with CKA-SR.

The names of the first ten minutes are here: the penalty (`cka_penalty`, `stage_features`), the
sparse optimizer (`sparsify`, `sparse_init`, `make_rule`, `apply_masks`, `get_masks`, `density`) and
the similarity itself (`cka`, `cka_matrix`). The rest of the library is in `cka_sr_jax.similarity`,
`sparsity`, `layer_sparsity` and `accounting`.
"""

from cka_sr_jax.similarity import cka, cka_matrix, cka_penalty, stage_features
from cka_sr_jax.sparsity import (
    apply_masks,
    density,
    get_masks,
    make_rule,
    sparse_init,
    sparsify,
    static,
)

__version__ = "0.1.0"

__all__ = [
    "apply_masks",
    "cka",
    "cka_matrix",
    "cka_penalty",
    "density",
    "get_masks",
    "make_rule",
    "sparse_init",
    "sparsify",
    "stage_features",
    "static",
]
