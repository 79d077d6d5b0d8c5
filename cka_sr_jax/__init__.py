"""Sparse neural-network training in JAX/Flax with CKA-SR."""

from cka_sr_jax.similarity import (
    cka,
    cka_from_hsic,
    cka_matrix,
    cka_penalty,
    hsic_matrix,
    outlier_share,
)
from cka_sr_jax.sparsity import apply_masks, density, get_masks, make_rule, sparsify, static

__version__ = "0.1.0"

__all__ = [
    "apply_masks",
    "cka",
    "cka_from_hsic",
    "cka_matrix",
    "cka_penalty",
    "density",
    "get_masks",
    "hsic_matrix",
    "make_rule",
    "outlier_share",
    "sparsify",
    "static",
]
