"""Kernels as sparse matrices of `jax.experimental.sparse`."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from cka_sr_jax._paths import replace_leaves
from cka_sr_jax.export.kept import Kept, kept_weights
from cka_sr_jax.sparsity import Layer, Masks
from cka_sr_jax.sparsity.layers import Axes, describe


def to_bcoo(params: Any, masks: Masks, *, input_axes: Axes | None = None) -> Any:
    """`params` with a `BCOO` matrix [inputs, outputs] of the kept weights at each masked leaf.

    A dense layer then is `x @ kernel + bias` as before, for x of JAX: NumPy's `@` does not know
    BCOO. Leaves without a mask stay as they are.

    `layers_of` says what a kernel's inputs and outputs are. Several axes of either count as one:
    attention's `query` [in, heads, features] becomes [in, heads x features], and a convolution
    [h, w, in, out] becomes [h x w x in, out], which multiplies patches of the image.

    A kept weight is stored even where it is 0. Each takes its value and two int32 indices: 12 bytes
    in float32, so the matrix is smaller than the dense kernel below density 1/3. JAX calls these
    matrices experimental.

    >>> import optax
    >>> params = {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "bias": jnp.ones(2)}
    >>> masks = {"kernel": params["kernel"] != 0, "bias": optax.MaskedNode()}
    >>> layer = to_bcoo(params, masks)
    >>> layer["kernel"].nse, (jnp.array([[1.0, 10.0]]) @ layer["kernel"] + layer["bias"]).tolist()
    (2, [[31.0, 3.0]])

    Args:
      params: pytree of arrays.
      masks: of `get_masks`, concrete: a traced mask does not say how many weights it keeps.
      input_axes: as for `layers_of`.

    Raises:
      ValueError: as `layers_of`, for a kernel that looks like a stack of layers, which one matrix
        cannot hold; the masks are not those of the parameters.
    """
    found = kept_weights(params, masks)
    layers = describe(params, list(found), input_axes=input_axes)
    return replace_leaves(params, {path: _matrix(layers[path], found[path]) for path in found})


def _matrix(layer: Layer, kept: Kept) -> BCOO:
    shape = [math.prod(layer.shape[axis] for axis in axes) for axes in layer[3:]]
    shape[0] *= math.prod(layer.shape[axis] for axis in layer.taps)
    axes = (*layer.fan_in, *layer.outputs)
    kernel, mask = (np.transpose(array, axes).reshape(shape) for array in kept)
    indices = np.argwhere(mask).astype(np.int32)  # row by row, each place once
    return BCOO(
        (jnp.asarray(kernel[mask]), jnp.asarray(indices)),
        shape=kernel.shape,
        indices_sorted=True,
        unique_indices=True,
    )
