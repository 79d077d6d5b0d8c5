"""Similarity of layers: CKA, CCA, and the CKA-SR penalty, as pure functions of features.

Beside them the rank of features, in `rank`.
"""

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
from cka_sr_jax.similarity.rank import (
    IndependenceDeficit,
    classification_dimension,
    effective_rank,
    independence_deficit,
    partial_rank,
    perturbed_pca_rank,
)
from cka_sr_jax.similarity.whole_set import CKAMatrix, cka_over_batches, compare_cka, distinct

__all__ = [
    "CKAMatrix",
    "IndependenceDeficit",
    "cca_matrix",
    "cca_penalty",
    "cka",
    "cka_from_hsic",
    "cka_matrix",
    "cka_over_batches",
    "cka_penalty",
    "classification_dimension",
    "compare_cka",
    "distinct",
    "effective_rank",
    "first_samples",
    "hsic_matrix",
    "independence_deficit",
    "outlier_share",
    "partial_rank",
    "perturbed_pca_rank",
    "stage_features",
]
