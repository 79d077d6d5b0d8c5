"""Chains: affine layers with a ReLU between every two, and none after the last.

    chain(x) = A_{L-1}(relu(A_{L-2}(... relu(A_0(x)) ...))),   A_j(h) = h @ kernel_j + bias_j.

With kernels of rank 4, A_j is a VALID convolution of stride 1 (1x1 convolutions included). A chain
is any sequence of `Affine`. Layers are counted from 0, so the hidden layers are 0 to L - 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


class Affine(NamedTuple):
    """One affine layer in Flax's layout; the rank of the kernel says which kind.

    Attributes:
      kernel: [in, out], a dense layer; [kh, kw, in, out], a VALID convolution of stride 1.
      bias: [out]; zeros for a layer without a bias.
    """

    kernel: Array | np.ndarray
    bias: Array | np.ndarray


Chain = Sequence[Affine]


def apply_chain(chain: Chain, x: ArrayLike) -> Float[Array, "..."]:
    """The chain's output: [b, in] -> [b, out], or [b, h, w, in] -> [b, h', w', out].

      >>> layer = Affine(jnp.array([[1.0, -1.0]]), jnp.zeros(2))
      >>> chain = (layer, Affine(jnp.ones((2, 1)), jnp.zeros(1)))
      >>> print(apply_chain(chain, jnp.array([[-3.0]])))
      [[3.]]

    Raises:
      ValueError: as `check_chain`; x does not fit the first layer.
    """
    check_chain(chain)
    check_input(chain, x)
    x = jnp.asarray(x)
    for layer in chain[:-1]:
        x = jax.nn.relu(apply_affine(layer, x))
    return apply_affine(chain[-1], x)


def apply_affine(layer: Affine, x: Array) -> Array:
    """One layer, without activation."""
    if layer.kernel.ndim == 2:
        y = x @ layer.kernel
    else:
        y = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(layer.kernel),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return y + jnp.broadcast_to(layer.bias, y.shape)


def candidate_layers(chain: Chain, nonnegative_input: bool = False) -> range:
    """The hidden layers that may become inactive: those applied to non-negative values.

    These are all hidden layers but the first, which is applied to the input; with
    `nonnegative_input` (pixels in [0, 1]) the first as well. The output layer has no ReLU to lose.
    """
    return range(0 if nonnegative_input else 1, len(chain) - 1)


def compose(first: Affine, second: Affine) -> Affine:
    """The one layer that equals `second` after `first`, with nothing in between.

    Dense: kernel_1 @ kernel_2 and bias_1 @ kernel_2 + bias_2. Convolutions:

      kernel[c] = sum_{a + b = c} kernel_1[a] @ kernel_2[b],
      bias = bias_1 @ sum_b kernel_2[b] + bias_2,

    so a 3x3 after a 3x3 is a 5x5. (A dense layer is the 1x1 case.) Products are summed in float64
    on the host, and rounded once to the layers' own type.

      >>> first = Affine(np.array([[2.0]]), np.array([1.0]))
      >>> compose(first, Affine(np.array([[3.0]]), np.array([5.0])))
      Affine(kernel=array([[6.]]), bias=array([8.]))

    Raises:
      ValueError: as `check_chain`.
    """
    check_chain((first, second))
    kernel, bias = compose_in_float64(first, second)
    return Affine(like(kernel, first.kernel, second.kernel), like(bias, first.bias, second.bias))


def compose_in_float64(first: Affine, second: Affine) -> Affine:
    """`compose` without the rounding to the layers' type."""
    taps_1, taps_2 = _taps(first.kernel), _taps(second.kernel)
    (height, width), (rows, columns) = taps_1.shape[:2], taps_2.shape[:2]
    inputs, outputs = taps_1.shape[2], taps_2.shape[3]
    kernel = np.zeros((height + rows - 1, width + columns - 1, inputs, outputs))
    for i, j in np.ndindex(rows, columns):
        kernel[i : i + height, j : j + width] += taps_1 @ taps_2[i, j]
    bias = to_float64(first.bias) @ taps_2.sum((0, 1)) + to_float64(second.bias)
    if second.kernel.ndim == 2:
        kernel = kernel[0, 0]
    return Affine(kernel, bias)


def check_chain(chain: Chain, values: bool = False) -> None:
    """Raise ValueError unless this is a chain; with `values`, of finite weights.

    Raises:
      ValueError: no layer; a layer that is not an `Affine`; kernels of a rank other than 2 and 4,
        or of both; a bias that does not fit its kernel; a layer that does not fit the one before
        it; with `values`, a NaN or infinite weight.
    """
    if isinstance(chain, Affine) or len(chain) == 0:
        raise ValueError("a chain is a sequence of one or more Affine(kernel, bias) layers.")
    for i, layer in enumerate(chain):
        if not isinstance(layer, Affine):
            raise ValueError(
                f"layer {i} of the chain is a {type(layer).__name__} and not an Affine(kernel, "
                "bias): make chains of models with from_mlp, from_linen, from_nnx or from_params."
            )
        kernel, bias = jnp.shape(layer.kernel), jnp.shape(layer.bias)
        if len(kernel) not in (2, 4):
            raise ValueError(
                f"the kernel of layer {i} has shape {kernel}: a dense layer's is [in, out] and a "
                "convolution's [kh, kw, in, out]."
            )
        if bias != kernel[-1:]:
            raise ValueError(
                f"the bias of layer {i} has shape {bias} and its kernel {kernel}: pass one "
                "number for each output, zeros for a layer without a bias."
            )
        if i and len(kernel) != jnp.ndim(chain[i - 1].kernel):
            raise ValueError(
                f"layers {i - 1} and {i} are a convolution and a dense layer, which do not merge: "
                "make one chain of the convolutions and one of the dense layers."
            )
        if i and kernel[-2] != jnp.shape(chain[i - 1].kernel)[-1]:
            raise ValueError(
                f"layer {i} takes {kernel[-2]} inputs and layer {i - 1} gives "
                f"{jnp.shape(chain[i - 1].kernel)[-1]}: these layers do not follow one another."
            )
        if values and not all(np.isfinite(to_float64(array)).all() for array in layer):
            raise ValueError(
                f"layer {i} has a weight that is NaN or infinite, so its signs say nothing: pass "
                "the weights of a training that did not diverge."
            )


def check_input(chain: Chain, x: ArrayLike) -> None:
    """Raise ValueError unless x is a batch that the first layer takes."""
    kernel = jnp.shape(chain[0].kernel)
    if jnp.ndim(x) != len(kernel) or jnp.shape(x)[-1] != kernel[-2]:
        raise ValueError(
            f"the input has shape {jnp.shape(x)} and the first layer's kernel {kernel}: pass "
            "[batch, in] to dense layers and [batch, height, width, in] to convolutions."
        )
    taps = [sum(size - 1 for size in sizes) + 1 for sizes in _spatial_sizes(chain)]
    if any(size < needed for size, needed in zip(jnp.shape(x)[1:-1], taps, strict=True)):
        raise ValueError(
            f"the input has shape {jnp.shape(x)}, and the chain's VALID convolutions need images "
            f"of {' x '.join(map(str, taps))} or more."
        )


def _spatial_sizes(chain: Chain) -> list[tuple[int, ...]]:
    """The kernels' heights and their widths; nothing for dense layers."""
    return list(zip(*(jnp.shape(layer.kernel)[:-2] for layer in chain), strict=True))


def to_float64(array: ArrayLike) -> np.ndarray:
    """The array on the host, in float64.

    Raises:
      ValueError: inside `jit` or `grad`, where there are no values.
    """
    if isinstance(array, jax.core.Tracer):
        raise ValueError(
            "this needs the weights' values, which jit and grad hide: call it outside of them; "
            "inside, use layer_penalty of from_params or from_mlp."
        )
    return np.asarray(array).astype(np.float64)


def _taps(kernel: ArrayLike) -> np.ndarray:
    """The kernel as [kh, kw, in, out]; a dense layer is a 1x1 convolution."""
    array = to_float64(kernel)
    return array if array.ndim == 4 else array[None, None]


def like(array: Any, *sources: ArrayLike) -> Array | np.ndarray:
    """The array in the sources' type, and a JAX array where one of them is."""
    with np.errstate(over="ignore"):  # it becomes infinity, which the callers check
        array = array.astype(np.result_type(*(np.asarray(x).dtype for x in sources)))
    return jnp.asarray(array) if any(isinstance(x, jax.Array) for x in sources) else array
