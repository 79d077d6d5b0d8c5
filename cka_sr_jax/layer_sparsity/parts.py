"""A model's layers as parts of a chain: kernels, convolutions, and BatchNorm folded in.

`linen` and `nnx` share these. A part is an `Affine` layer, or a function that folds a BatchNorm
into the layer before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cka_sr_jax.layer_sparsity.chain import Affine, check_chain, compose, like, to_float64

Part = Affine | Callable[[Affine], Affine]


def fold_batch_norm(
    layer: Affine,
    scale: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    eps: float = 1e-5,
) -> Affine:
    """The layer with the BatchNorm after it folded in, in inference form.

      s = scale / sqrt(var + eps);   kernel' = kernel * s,   bias' = (layer.bias - mean) s + bias.

    Computed in float64 on the host, and rounded once to the layer's own type.

      >>> layer = Affine(np.ones((2, 3)), np.zeros(3))
      >>> fold_batch_norm(layer, scale=2.0, bias=1.0, mean=0.0, var=1.0, eps=0.0).bias
      array([1., 1., 1.])

    Args:
      layer: of rank 2 or 4, with `out` outputs.
      scale, bias, mean, var: [out], one number for each output, or one number for all.
      eps: added to the variance.

    Raises:
      ValueError: as `check_chain`, with values; vectors of another length; inside jit or grad.
    """
    vectors = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    check_concrete("fold_batch_norm", (layer, vectors), "from_params without the BatchNorm")
    check_chain((layer,), values=True)
    for name, vector in vectors.items():
        if np.shape(vector) not in ((), layer.bias.shape):
            raise ValueError(
                f"{name} has shape {np.shape(vector)} and the layer {layer.bias.size} outputs: "
                "pass the statistics of the BatchNorm over these outputs, one number for each."
            )
    factor = to_float64(scale) / np.sqrt(to_float64(var) + eps)
    shift = (to_float64(layer.bias) - to_float64(mean)) * factor + to_float64(bias)
    kernel = to_float64(layer.kernel) * factor
    shift = np.broadcast_to(shift, layer.bias.shape)
    result = Affine(like(kernel, layer.kernel), like(shift, layer.bias))
    check_chain((result,), values=True)
    return result


def batch_norm(params: Mapping[str, Any], stats: Mapping[str, Any], eps: float) -> Part:
    """The part of a BatchNorm with these statistics; "scale" and "bias" may be missing."""

    def fold(layer: Affine) -> Affine:
        scale, bias = params.get("scale", 1.0), params.get("bias", 0.0)
        return fold_batch_norm(layer, scale, bias, stats["mean"], stats["var"], eps)

    return fold


def affine(kernel: Any, bias: Any) -> Affine:
    """The layer of a kernel and a bias, or of None for a bias of zeros."""
    return Affine(kernel, jnp.zeros(kernel.shape[-1:], kernel.dtype) if bias is None else bias)


def append_part(chain: list[Affine], name: str, part: Part, step: str) -> None:
    """Append a part that comes after this step ("relu" or "linear") to the chain, in place.

    A part right after a layer, with step "linear", is merged into that layer at once.

    Raises:
      ValueError: a BatchNorm that does not follow a layer directly.
    """
    if not isinstance(part, Affine):
        if not chain or step != "linear":
            raise ValueError(
                f"the BatchNorm {name} does not follow a layer directly: only one between a layer "
                "and its activation folds into the layer."
            )
        chain[-1] = part(chain[-1])
    elif chain and step == "linear":
        chain[-1] = compose(chain[-1], part)
    else:
        chain.append(part)


def check_concrete(caller: str, tree: Any, instead: str) -> None:
    """Raise ValueError where jit or grad traces a leaf of the tree, which then has no value."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"{caller} looks at the weights' values, which jit and grad hide: call it outside of "
            f"them; for a penalty in the loss use {instead}."
        )


def check_batch_norm_axis(name: str, axis: Any, rank: int) -> None:
    """Raise ValueError unless a BatchNorm of inputs of this rank is over the last axis."""
    if any(a not in (-1, rank - 1) for a in np.atleast_1d(axis)):
        raise ValueError(
            f"the BatchNorm {name} has axis {axis}: only one over the last axis, which holds a "
            "layer's outputs, folds into the layer."
        )


def check_convolution(name: str, module: Any) -> None:
    """Raise ValueError unless a Linen or NNX convolution is VALID, of stride 1 and plain."""
    size = tuple(np.atleast_1d(module.kernel_size))

    def ones(value: Any) -> bool:
        return value is None or bool(np.all(np.asarray(value) == 1))

    if len(size) != 2:
        raise ValueError(
            f"the convolution {name} is over {len(size)} axes: only convolutions over two merge."
        )
    if not ones(module.strides):
        raise ValueError(
            f"the convolution {name} has strides {module.strides}: layers merge at stride 1 only."
        )
    padding = module.padding
    if isinstance(padding, str):
        unpadded = padding == "VALID" or all(length == 1 for length in size)
    else:
        unpadded = not np.any(np.asarray(padding))
    if not unpadded:
        raise ValueError(
            f"the convolution {name} has padding {padding!r}: a merged layer would not compute the "
            "zeros that it puts around its input, so use 'VALID'."
        )
    if not (ones(module.kernel_dilation) and ones(module.input_dilation)):
        raise ValueError(f"the convolution {name} is dilated: only plain convolutions merge.")
    if module.feature_group_count != 1 or module.mask is not None:
        raise ValueError(
            f"the convolution {name} has groups or a mask: only plain convolutions merge."
        )
