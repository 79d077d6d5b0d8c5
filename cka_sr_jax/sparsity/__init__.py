"""Sparse training: masks, rules, and `sparsify` to plug them into an Optax optimizer.

Where things are:

- `sparsify`: sparsify.py. Its state, `sparse_init`, `get_masks`, `mask_metrics`: state.py.
- Rules by name (`make_rule`, `RULES`): registry.py. What a rule is, and how to write one: rule.py.
- Rules: random or given masks (fixed.py), drop and grow (dynamic.py), gradual pruning (gradual.py),
  channels and N:M (structured.py).
- Pruning before training, whose masks go into `static`: SNIP, GraSP and SynFlow
  (before_training.py), NTT (tangent_transfer.py).
- Pruning a trained network by top-down attention (attentive.py).
- Methods that learn their masks: `learn_masks` (reparametrization.py), STR and DST
  (learned_thresholds.py), SR-STE (structured.py).
- What a layer is, and which parameters are pruned: `layers_of` (layers.py).
- What rules are made of: masks.py, distributions.py, schedules.py, scores.py, selection.py,
  replacement.py.

A new rule goes into the file of its kind and into `RULES`.
"""

from cka_sr_jax._paths import leaf_paths, matches
from cka_sr_jax.sparsity.attentive import attentive, attentive_scores
from cka_sr_jax.sparsity.before_training import grasp, snip, synflow
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
from cka_sr_jax.sparsity.dynamic import mest, rigl, snfs, sparse_evolutionary
from cka_sr_jax.sparsity.fixed import dense, rst, static
from cka_sr_jax.sparsity.gradual import gmp, granet
from cka_sr_jax.sparsity.layers import Layer, layers_of
from cka_sr_jax.sparsity.learned_thresholds import dst, soft_threshold
from cka_sr_jax.sparsity.masks import (
    Masks,
    apply_masks,
    churn,
    density,
    epsilon_sparsity,
    explored,
    full_masks,
    masks_from_paths,
    rescale_kept,
)
from cka_sr_jax.sparsity.new_weights import adam_correction, ramp
from cka_sr_jax.sparsity.random_places import random_masks
from cka_sr_jax.sparsity.registry import RULES, make_rule
from cka_sr_jax.sparsity.reparametrization import Reparametrization, learn_masks
from cka_sr_jax.sparsity.rule import Change, Rule, map_layers
from cka_sr_jax.sparsity.schedules import constant, cosine, cubic_counts, linear
from cka_sr_jax.sparsity.scores import SCORES, Score, magnitude_and_gradient
from cka_sr_jax.sparsity.selection import top_k_mask, top_k_masks
from cka_sr_jax.sparsity.sparsify import sparsify, with_masks
from cka_sr_jax.sparsity.state import SparseState, get_masks, mask_metrics, sparse_init
from cka_sr_jax.sparsity.structured import channel_masks, channels, n_m_masks, sr_ste
from cka_sr_jax.sparsity.tangent_transfer import Transferred, ntt, tangent_kernel
from cka_sr_jax.sparsity.tied import Tied

__all__ = [
    "DISTRIBUTIONS",
    "RULES",
    "SCORES",
    "Change",
    "Layer",
    "Masks",
    "Reparametrization",
    "Rule",
    "Score",
    "SparseState",
    "Tied",
    "Transferred",
    "adam_correction",
    "apply_masks",
    "attentive",
    "attentive_scores",
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
    "full_masks",
    "get_masks",
    "gmp",
    "granet",
    "grasp",
    "layer_counts",
    "layer_densities",
    "layers_of",
    "leaf_paths",
    "learn_masks",
    "linear",
    "magnitude_and_gradient",
    "make_rule",
    "map_layers",
    "mask_metrics",
    "masks_from_paths",
    "matches",
    "mest",
    "n_m_masks",
    "ntt",
    "ramp",
    "random_masks",
    "rescale_kept",
    "rigl",
    "rst",
    "snfs",
    "snip",
    "soft_threshold",
    "sparse_evolutionary",
    "sparse_init",
    "sparsify",
    "sr_ste",
    "static",
    "synflow",
    "tangent_kernel",
    "top_k_mask",
    "top_k_masks",
    "uniform",
    "uniform_plus",
    "with_masks",
]
