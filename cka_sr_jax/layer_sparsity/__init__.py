"""Layer sparsity: train ReLU layers away, merge them exactly, refit the shallower network."""

from cka_sr_jax.layer_sparsity.adapters import (
    check_activation,
    fold_batch_norm,
    from_linen,
    from_mlp,
    from_nnx,
    from_params,
    to_mlp_params,
)
from cka_sr_jax.layer_sparsity.chain import (
    Affine,
    Chain,
    apply_chain,
    candidate_layers,
    check_chain,
    compose,
)
from cka_sr_jax.layer_sparsity.export import load_mlp, save_mlp
from cka_sr_jax.layer_sparsity.merge import (
    active_layers,
    drop_negative_parts,
    merge_layers,
)
from cka_sr_jax.layer_sparsity.penalty import (
    layer_penalty,
    negative_norm,
)
from cka_sr_jax.layer_sparsity.prox import (
    LayerProxState,
    l1_prox,
    layer_prox,
    prox_l1,
    prox_negative_part,
    prox_units,
    unit_prox,
)
from cka_sr_jax.layer_sparsity.refit import (
    drop_dead_units,
    l1_penalty,
    random_like,
    row_group_penalty,
)

__all__ = [
    "Affine",
    "Chain",
    "LayerProxState",
    "active_layers",
    "apply_chain",
    "candidate_layers",
    "check_activation",
    "check_chain",
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
    "layer_penalty",
    "layer_prox",
    "load_mlp",
    "merge_layers",
    "negative_norm",
    "prox_l1",
    "prox_negative_part",
    "prox_units",
    "random_like",
    "row_group_penalty",
    "save_mlp",
    "to_mlp_params",
    "unit_prox",
]
