"""Sparse training: masks, layer-wise densities, rules, and `sparsify` to plug them into Optax."""

from cka_sr_jax._paths import leaf_paths
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
from cka_sr_jax.sparsity.masks import (
    Masks,
    apply_masks,
    churn,
    density,
    epsilon_sparsity,
    explored,
    rescale_kept,
)
from cka_sr_jax.sparsity.registry import RULES, make_rule
from cka_sr_jax.sparsity.reparametrization import Reparametrization, learn_masks
from cka_sr_jax.sparsity.rule import Rule
from cka_sr_jax.sparsity.saliency import grasp, snip, synflow
from cka_sr_jax.sparsity.schedules import constant, cosine, cubic_counts, linear
from cka_sr_jax.sparsity.scores import SCORES, Score, magnitude_and_gradient
from cka_sr_jax.sparsity.selection import top_k_mask
from cka_sr_jax.sparsity.sparsify import SparseState, get_masks, mask_metrics, sparsify
from cka_sr_jax.sparsity.structured import channel_masks, channels, n_m_masks, sr_ste
from cka_sr_jax.sparsity.tangent import Transferred, ntt, tangent_kernel
from cka_sr_jax.sparsity.thresholds import dst, str_

__all__ = [
    "DISTRIBUTIONS",
    "RULES",
    "SCORES",
    "Masks",
    "Reparametrization",
    "Rule",
    "Score",
    "SparseState",
    "Transferred",
    "apply_masks",
    "channel_masks",
    "channels",
    "churn",
    "constant",
    "cosine",
    "cubic_counts",
    "dense",
    "density",
    "dst",
    "epsilon_sparsity",
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
    "learn_masks",
    "linear",
    "magnitude_and_gradient",
    "make_rule",
    "mask_metrics",
    "mest",
    "n_m_masks",
    "ntt",
    "rescale_kept",
    "rigl",
    "rst",
    "set_",
    "snfs",
    "snip",
    "sparsify",
    "sr_ste",
    "static",
    "str_",
    "synflow",
    "tangent_kernel",
    "top_k_mask",
    "uniform",
    "uniform_plus",
]
