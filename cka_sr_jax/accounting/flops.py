"""How often a Flax Linen module applies each kernel, found by tracing it without computing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np


def kernel_positions(module: nn.Module, variables: Mapping[str, Any], x: Any) -> dict[str, int]:
    """Path of each kernel -> number of output positions per example at which it is applied.

    H_out * W_out for a convolution, 1 for a dense layer on a vector; a layer that is called twice
    counts both calls. The multiply-adds of one example are then kernel size * positions, those
    with a convolution's zero padding included. Right for modules like `nn.Conv` (any strides,
    dilation, groups) and `nn.Dense`, whose parameter is called "kernel" and whose every output is
    made from a full kernel; not for `nn.ConvTranspose`, nor inside `nn.scan` or `nn.vmap`.

    Args:
      module: called as `module.apply(variables, x, train=False, mutable=["features"])`, without
        the last two where its `__call__` takes no `train`.
      variables: with the collection "params"; the paths are relative to it, such as
        "stage1_block0/conv1/kernel".
      x: input [n, ...], an array or a `jax.ShapeDtypeStruct`.
    """
    positions: dict[str, int] = {}
    examples = x.shape[0]

    def count(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and _applies_kernel(layer, output):
            path = "/".join((*layer.path, "kernel"))
            # Per example of the model's input: the layer may see images folded into its batch.
            per_example = output.size // (examples * _features(layer))
            positions[path] = positions.get(path, 0) + per_example
        return output

    options: dict[str, Any] = {}
    if "train" in inspect.signature(module.__call__).parameters:
        options = {"train": False, "mutable": ["features"]}

    # A new function on each call, so that no cached trace keeps the interceptor from running.
    def forward(variables: Mapping[str, Any], x: Any) -> Any:
        return module.apply(variables, x, **options)

    with nn.intercept_methods(count):
        jax.eval_shape(forward, variables, x)
    return positions


def _applies_kernel(layer: nn.Module, output: Any) -> bool:
    return layer.has_variable("params", "kernel") and isinstance(output, jax.Array)


def _features(layer: nn.Module) -> int:
    """Output channels; `nn.DenseGeneral` may spread them over several axes."""
    kernel: Any = layer.get_variable("params", "kernel")
    return int(np.prod(getattr(layer, "features", kernel.shape[-1])))
