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
from cka_sr_jax.sparsity.masks import Masks, apply_masks, density, leaf_paths
from cka_sr_jax.sparsity.rules import RULES, Rule, dense, make_rule, rst, static
from cka_sr_jax.sparsity.sparsify import SparseState, get_masks, sparsify

__all__ = [
    "DISTRIBUTIONS",
    "RULES",
    "Masks",
    "Rule",
    "SparseState",
    "apply_masks",
    "dense",
    "density",
    "er",
    "erk",
    "erk_plus",
    "get_masks",
    "layer_counts",
    "layer_densities",
    "leaf_paths",
    "make_rule",
    "rst",
    "sparsify",
    "static",
    "uniform",
    "uniform_plus",
]
