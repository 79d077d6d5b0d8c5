"""Distributions that a config names: the library's numbers, and a cure that a config has."""

import numpy as np
import pytest

from cka_sr_jax.sparsity import get_masks, layer_counts, leaf_paths
from cka_sr_jax.training import ConfigError, new_state
from cka_sr_jax.training.loop import prepare
from tests.training.runs import small_config


@pytest.mark.parametrize("rule", ["rst", "gmp"])
@pytest.mark.parametrize(
    ("distribution", "reason"),
    [
        ("erk_plus", r"the head layer is not clear: 2 candidates \(head/kernel, hidden0/kernel\)"),
        ("uniform_plus", r"the first layer is not clear: 0 candidates \(none\)"),
    ],
)
def test_a_distribution_that_does_not_suit_the_model_is_one_sentence(rule, distribution, reason):
    """Its cure is one that a config has, not an argument of the library."""
    config = small_config(sparsity__rule=rule, sparsity__distribution=distribution)
    config.model.options.hidden = (16,)
    config.penalty.beta = 0.0
    if rule == "gmp":
        config.sparsity.update_every = 1
    with pytest.raises(
        ConfigError,
        match=f"^sparsity.distribution='{distribution}' does not fit this model, because {reason}: "
        r"use another distribution, such as 'erk', or a model whose first layer is a convolution",
    ) as error:
        prepare(config)
    assert "head=" not in str(error.value)


def test_a_distribution_that_suits_the_model_is_the_library_s():
    config = small_config(sparsity__distribution="erk_plus", sparsity__density=0.3)
    config.data.downsample, config.penalty.beta = 1, 0.0
    config.model.name, config.model.options = "resnet8", {"width": 4}
    tree = get_masks(new_state(prepare(config)).opt_state)
    masks = {path: np.asarray(mask) for path, mask in leaf_paths(tree)}
    shapes = {path: mask.shape for path, mask in masks.items()}
    assert {p: int(m.sum()) for p, m in masks.items()} == layer_counts(shapes, 0.3, "erk_plus")
