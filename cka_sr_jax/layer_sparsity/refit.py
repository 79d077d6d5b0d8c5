"""What the refit of a merged chain may add: node and connection sparsity, and a cold start.

The refit is ordinary training of the merged layers without the layer penalty. That it comes in
these variants is recalled from Hebiri and Lederer (arXiv 2006.15604), not read.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cka_sr_jax.layer_sparsity.chain import Affine, Chain, check_chain
from cka_sr_jax.layer_sparsity.penalty import safe_norm


def row_group_penalty(chain: Chain) -> Float[Array, ""]:
    """Node sparsity: the sum over hidden units of the l2 norm of their incoming weights.

    A unit's weights are a row of the paper's W (y = W x) and a column of Flax's kernel. The output
    layer's units are the network's outputs and do not count. Gradient 0 at units that are 0.

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain(chain)
    columns = jax.vmap(safe_norm, in_axes=-1)
    terms = [jnp.sum(columns(jnp.asarray(layer.kernel))) for layer in chain[:-1]]
    return sum(terms, start=jnp.zeros(()))


def l1_penalty(chain: Chain) -> Float[Array, ""]:
    """Connection sparsity: the sum of |w| over all kernels.

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain(chain)
    return sum((jnp.sum(jnp.abs(layer.kernel)) for layer in chain), start=jnp.zeros(()))


def random_like(chain: Chain, key: Array) -> tuple[Affine, ...]:
    """Fresh weights of the same shapes: He-normal kernels, N(0, 2 / fan_in), and biases of 0.

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
