"""Pruning before training on a run's own model."""

from functools import partial

import jax
import numpy as np
import pytest

from cka_sr_jax.models import create_model
from cka_sr_jax.training.pruning import Untrained, synflow_masks


@pytest.mark.slow
def test_synflow_of_convolutions_with_batch_norm_and_shortcuts():
    """ResNet-32's flow overflows float32; in float64 every layer keeps weights."""
    model = create_model("resnet32", num_classes=10, width=16)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    untrained = Untrained(
        model=model,
        variables=jax.jit(partial(model.init, train=False))(jax.random.key(1), images),
        images=lambda i: images[i],
        labels=np.arange(4),
        batch_at=lambda step: np.arange(4),
        key=jax.random.key(2),
    )
    masks = synflow_masks(untrained, {"density": 0.02, "rounds": 5})
    counts = [int(mask.sum()) for mask in jax.tree.leaves(masks)]
    assert min(counts) > 0
    assert sum(counts) == round(0.02 * sum(mask.size for mask in jax.tree.leaves(masks)))
