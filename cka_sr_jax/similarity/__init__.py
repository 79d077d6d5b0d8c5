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
from cka_sr_jax.similarity.grams import first_samples
from cka_sr_jax.similarity.outliers import outlier_share
from cka_sr_jax.similarity.whole_set import CKAMatrix, cka_over_batches, compare_cka, distinct

__all__ = [
    "CKAMatrix",
    "cca_matrix",
    "cca_penalty",
    "cka",
    "cka_from_hsic",
    "cka_matrix",
    "cka_over_batches",
    "cka_penalty",
    "compare_cka",
    "distinct",
    "first_samples",
    "hsic_matrix",
    "outlier_share",
    "stage_features",
]
