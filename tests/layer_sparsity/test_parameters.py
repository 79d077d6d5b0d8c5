"""Chains from parameters and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    from_mlp,
    from_params,
    layer_penalty,
    merge_layers,
    to_mlp_params,
)
from cka_sr_jax.models import MLP
from tests.layer_sparsity.chains import (
    X,
    close,
)


def test_an_mlp_goes_to_a_chain_is_merged_and_comes_back():
    model = MLP(num_classes=4, hidden=(8,) * 11)  # hidden10 sorts before hidden2
    params = model.init(jax.random.key(0), X, train=False)["params"]
    params["hidden3"] = jax.tree.map(jnp.abs, params["hidden3"])
    params["hidden10"] = jax.tree.map(jnp.abs, params["hidden10"])
    logits = model.apply({"params": params}, X, train=False)
    chain = from_mlp(dict(sorted(params.items())))
    close(apply_chain(chain, X), logits)

    merged = merge_layers(chain)
    hidden, merged_params = to_mlp_params(merged)
    assert len(hidden) == 9
    small = MLP(num_classes=4, hidden=hidden)
    close(small.apply({"params": merged_params}, X, train=False), logits)
    shapes = jax.eval_shape(lambda: small.init(jax.random.key(0), X, train=False))["params"]
    assert jax.tree.map(jnp.shape, merged_params) == jax.tree.map(jnp.shape, shapes)


def test_the_penalty_of_parameters_is_a_loss_term():
    params = MLP(3, (4, 5)).init(jax.random.key(0), X, train=False)["params"]
    gradient = jax.jit(jax.grad(lambda p: layer_penalty(from_mlp(p))))(params)
    assert np.any(gradient["hidden1"]["kernel"])
    assert not np.any(gradient["hidden0"]["kernel"])


def test_other_parameters_are_refused_with_a_sentence():
    params = MLP(3, (4, 5)).init(jax.random.key(0), X, train=False)
    with pytest.raises(ValueError, match=r"not the parameters of an MLP.*but params: pass var"):
        from_mlp(params)
    with pytest.raises(ValueError, match="no layer 'hidden9' with a kernel: they have"):
        from_params(params["params"], ["hidden0", "hidden9"])
    with pytest.raises(ValueError, match="layer 1 takes 5 inputs and layer 0 gives 4"):
        from_params(params["params"], ["hidden0", "head"])
    with pytest.raises(ValueError, match="this is a chain of convolutions"):
        to_mlp_params([Affine(np.ones((1, 1, 2, 3)), np.ones(3))])
