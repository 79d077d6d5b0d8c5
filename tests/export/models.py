"""Small models with masks, for files of them."""

import jax
import numpy as np

from cka_sr_jax.models import create_model
from cka_sr_jax.sparsity import layers_of, leaf_paths, masks_from_paths


def sparse_model(name="resnet8", density=0.1, image=(8, 8, 3), **options):
    """(model, variables, masks, images): random weights and statistics, pruned at random."""
    model, rng = create_model(name, 3, **options), np.random.default_rng(0)
    images = rng.normal(size=(4, *image)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    variables = jax.tree.map(lambda v: rng.uniform(0.1, 1, v.shape).astype(np.float32), shapes)
    params = variables["params"]
    leaves = dict(leaf_paths(params))
    masks = {path: rng.random(leaves[path].shape) < density for path in layers_of(params)}
    for path, mask in masks.items():
        leaves[path][~mask] = 0
    return model, variables, masks_from_paths(params, masks), images


def logits(model, variables, images):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def assert_same(tree, expected):
    """Equal trees: structure, types, every bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
