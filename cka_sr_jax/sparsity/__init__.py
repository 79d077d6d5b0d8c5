"""Sparse training: masks, layer-wise densities, rules, and `sparsify` to plug them into Optax."""

from cka_sr_jax.sparsity.distributions import (
    DISTRIBUTIONS,
    er,
    erk,
    erk_plus,
    layer_counts,
    layer_densities,
    uniform,
    uniform_plus,
)
from cka_sr_jax.sparsity.dynamic import mest, rigl, set_, snfs
from cka_sr_jax.sparsity.fixed import dense, rst, static
from cka_sr_jax.sparsity.gradual import gmp, granet
from cka_sr_jax.sparsity.masks import Masks, apply_masks, churn, density, explored, leaf_paths
from cka_sr_jax.sparsity.rule import Rule
from cka_sr_jax.sparsity.rules import RULES, make_rule
from cka_sr_jax.sparsity.saliency import grasp, snip, synflow
from cka_sr_jax.sparsity.schedules import constant, cosine, cubic, linear
from cka_sr_jax.sparsity.scores import SCORES, Score, magnitude_and_gradient
from cka_sr_jax.sparsity.selection import top_k_mask
from cka_sr_jax.sparsity.sparsify import SparseState, get_masks, mask_metrics, sparsify

__all__ = [
    "DISTRIBUTIONS",
    "RULES",
    "SCORES",
    "Masks",
    "Rule",
    "Score",
    "SparseState",
    "apply_masks",
    "churn",
    "constant",
    "cosine",
    "cubic",
    "dense",
    "density",
    "er",
    "erk",
    "erk_plus",
    "explored",
    "get_masks",
    "gmp",
    "granet",
    "grasp",
    "layer_counts",
    "layer_densities",
    "leaf_paths",
    "linear",
    "magnitude_and_gradient",
    "make_rule",
    "mask_metrics",
    "mest",
    "rigl",
    "rst",
    "set_",
    "snfs",
    "snip",
    "sparsify",
    "static",
    "synflow",
    "top_k_mask",
    "uniform",
    "uniform_plus",
]
