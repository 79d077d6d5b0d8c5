"""Layer sparsity: train ReLU layers away, merge them exactly, refit the shallower network."""

from cka_sr_jax.layer_sparsity.activations import check_activation
from cka_sr_jax.layer_sparsity.chain import (
    Affine,
    Chain,
    apply_chain,
    candidate_layers,
    check_chain,
    compose,
)
from cka_sr_jax.layer_sparsity.export import load_mlp, save_mlp
from cka_sr_jax.layer_sparsity.linen import from_linen
from cka_sr_jax.layer_sparsity.merge import (
    active_layers,
    drop_negative_parts,
    merge_layers,
    spectral_norm,
)
from cka_sr_jax.layer_sparsity.nnx import from_nnx
from cka_sr_jax.layer_sparsity.parameters import from_mlp, from_params, to_mlp_params
from cka_sr_jax.layer_sparsity.parts import fold_batch_norm
from cka_sr_jax.layer_sparsity.penalty import layer_penalty, negative_norm
from cka_sr_jax.layer_sparsity.prox import (
    LayerProxState,
    branch_prox,
    l1_prox,
    layer_prox,
    shrink_group,
    shrink_negative_part,
    shrink_units,
    shrink_weights,
    unit_prox,
)
from cka_sr_jax.layer_sparsity.refit import (
    drop_dead_units,
    l1_penalty,
    random_like,
    row_group_penalty,
)
from cka_sr_jax.layer_sparsity.removal import (
    cka_without_blocks,
    cka_without_layers,
    layer_entropies,
    remove_activation,
)

__all__ = [
    "Affine",
    "Chain",
    "LayerProxState",
    "active_layers",
    "apply_chain",
    "branch_prox",
    "candidate_layers",
    "check_activation",
    "check_chain",
    "cka_without_blocks",
    "cka_without_layers",
    "compose",
    "drop_dead_units",
    "drop_negative_parts",
    "fold_batch_norm",
    "from_linen",
    "from_mlp",
    "from_nnx",
    "from_params",
    "l1_penalty",
    "l1_prox",
    "layer_entropies",
    "layer_penalty",
    "layer_prox",
    "load_mlp",
    "merge_layers",
    "negative_norm",
    "random_like",
    "remove_activation",
    "row_group_penalty",
    "save_mlp",
    "shrink_group",
    "shrink_negative_part",
    "shrink_units",
    "shrink_weights",
    "spectral_norm",
    "to_mlp_params",
    "unit_prox",
]
