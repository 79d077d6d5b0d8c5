"""Shapes of parameters and features, without running a model."""

import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.sparsity import leaf_paths

KEY = jax.random.key(0)


def init_shapes(model, image=(32, 32, 3)):
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return jax.eval_shape(lambda x: model.init(KEY, x, train=True), x)


def feature_shapes(model, image=(32, 32, 3), train=True):
    """Shapes of what `apply` records with variables straight from `init`."""
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)

    def record(variables, x):
        return model.apply(variables, x, train=train, mutable=["features", "batch_stats"])

    _, mutables = jax.eval_shape(record, init_shapes(model, image), x)
    return jax.tree.map(lambda x: x.shape, mutables["features"])


def random_variables(model, image):
    """Positive random parameters and statistics: no compilation, no scale of 1, no bias of 0."""
    rng = np.random.default_rng(0)
    shapes = init_shapes(model, image)
    return jax.tree.map(lambda v: rng.uniform(0.1, 1, v.shape).astype(np.float32), shapes)


def maskable(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]) if p.ndim >= 2)


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


def multiply_adds(model, variables, image):
    """Of one image's forward pass."""
    positions = kernel_positions(model, variables, jax.ShapeDtypeStruct((1, *image), jnp.float32))
    sizes = {path: leaf.size for path, leaf in leaf_paths(variables["params"])}
    return sum(sizes[path] * number for path, number in positions.items())
