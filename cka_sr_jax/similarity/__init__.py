"""Similarity of layers: CKA, CCA, and the CKA-SR penalty, as pure functions of features."""

from cka_sr_jax.similarity.cca import cca_matrix, cca_penalty
from cka_sr_jax.similarity.cka import (
    cka,
    cka_from_hsic,
    cka_matrix,
    cka_penalty,
    hsic_matrix,
)
from cka_sr_jax.similarity.features import stage_features
from cka_sr_jax.similarity.outliers import outlier_share

__all__ = [
    "cca_matrix",
    "cca_penalty",
    "cka",
    "cka_from_hsic",
    "cka_matrix",
    "cka_penalty",
    "hsic_matrix",
    "outlier_share",
    "stage_features",
]
