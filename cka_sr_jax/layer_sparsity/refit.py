"""What the refit of a merged chain may add: node and connection sparsity, and a cold start.

The refit is ordinary training of the merged layers without the layer penalty. Its variants are
those of Hebiri and Lederer (arXiv 2006.15604) as recalled; their text was not read. `l1_prox` and
`unit_prox` train with the penalties here such that weights become exactly 0.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cka_sr_jax.layer_sparsity.chain import Affine, Chain, check_chain, like, to_float64
from cka_sr_jax.layer_sparsity.penalty import safe_norm


def row_group_penalty(chain: Chain) -> Float[Array, ""]:
    """Node sparsity: sum_u ||w_u||_2 over the hidden units u, w_u their incoming weights.

    A unit's weights are a row of the paper's W (y = W x) and a column of Flax's kernel. The output
    layer is left out, as its units are the network's outputs. The gradient is 0 at units that are
    0.

      >>> chain = [Affine(jnp.array([[3.0, 0.0], [4.0, 0.0]]), jnp.zeros(2)),
      ...          Affine(jnp.ones((2, 1)), jnp.zeros(1))]
      >>> float(row_group_penalty(chain)), float(l1_penalty(chain))
      (5.0, 9.0)

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain(chain)
    columns = jax.vmap(safe_norm, in_axes=-1)
    terms = [jnp.sum(columns(jnp.asarray(layer.kernel))) for layer in chain[:-1]]
    return sum(terms, start=jnp.zeros(()))


def l1_penalty(chain: Chain) -> Float[Array, ""]:
    """Connection sparsity: the sum of |w| over the entries w of all kernels.

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain(chain)
    return sum((jnp.sum(jnp.abs(layer.kernel)) for layer in chain), start=jnp.zeros(()))


def drop_dead_units(chain: Chain) -> tuple[Affine, ...]:
    """The same function without the hidden units that do nothing: narrower layers.

    A unit whose incoming weights are all 0 has the value relu(b) on every input; this value goes
    into the next layer's bias. A unit whose outgoing weights are all 0 is dropped as well. Each
    layer keeps at least one unit. Computed on the host, with the biases summed in float64.

      >>> chain = [Affine(np.array([[1.0, 0.0]]), np.array([0.0, 2.0])),
      ...          Affine(np.array([[1.0], [3.0]]), np.zeros(1))]
      >>> drop_dead_units(chain)[1]
      Affine(kernel=array([[1.]]), bias=array([6.]))

    Raises:
      ValueError: as `check_chain`, with values.
    """
    check_chain(chain, values=True)
    layers = [tuple(np.asarray(array) for array in layer) for layer in chain]
    for j in range(len(layers) - 1):
        (kernel, bias), (outgoing, shift) = layers[j : j + 2]
        keep = _one_at_least(kernel.any(axis=tuple(range(kernel.ndim - 1))))
        constant = np.maximum(to_float64(bias), 0)[~keep]
        gain = to_float64(outgoing).sum(axis=tuple(range(kernel.ndim - 2)))[~keep]
        layers[j] = kernel[..., keep], bias[keep]
        shift = (to_float64(shift) + constant @ gain).astype(shift.dtype)
        layers[j + 1] = outgoing[..., keep, :], shift
    for j in reversed(range(len(layers) - 1)):
        (kernel, bias), (outgoing, shift) = layers[j : j + 2]
        keep = _one_at_least(outgoing.any(axis=(*range(kernel.ndim - 2), kernel.ndim - 1)))
        layers[j] = kernel[..., keep], bias[keep]
        layers[j + 1] = outgoing[..., keep, :], shift
    return tuple(
        Affine(*(like(a, source) for a, source in zip(layer, old, strict=True)))
        for layer, old in zip(layers, chain, strict=True)
    )


def _one_at_least(keep: Any) -> np.ndarray:
    return keep if keep.any() else np.arange(len(keep)) == 0


def random_like(chain: Chain, key: Array) -> tuple[Affine, ...]:
    """Fresh weights of the same shapes: He-normal kernels, N(0, 2 / fan_in), and biases of 0.

    The fan-in of a kernel is the product of all its axes but the last.

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain(chain)
    layers = []
    for layer_key, (kernel, bias) in zip(jax.random.split(key, len(chain)), chain, strict=True):
        fan_in = math.prod(kernel.shape[:-1])
        normal = jax.random.normal(layer_key, kernel.shape, kernel.dtype)
        layers.append(Affine(normal * math.sqrt(2 / fan_in), jnp.zeros(bias.shape, bias.dtype)))
    return tuple(layers)
