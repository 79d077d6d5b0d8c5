"""How often a Flax Linen module applies each kernel; the module is traced and not run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np


def kernel_positions(module: nn.Module, variables: Mapping[str, Any], x: Any) -> dict[str, int]:
    """Path of each kernel -> number of output positions per example at which it is applied.

    The paths are in the order in which the module first applies them.

      multiply-adds of one example = sum over kernels of size * positions

    A convolution has H_out * W_out positions, a dense layer on a vector has 1, and a layer that is
    called twice counts both calls. Products with a convolution's zero padding are included.

    The module may hold layers like `nn.Conv` (any strides, dilation, groups) and `nn.Dense`: their
    parameter is called "kernel", and each output is made from a full kernel. `nn.ConvTranspose` and
    layers inside `nn.scan` or `nn.vmap` are counted wrongly.

      >>> model, x = nn.Conv(4, (3, 3)), np.zeros((1, 8, 8, 3))
      >>> kernel_positions(model, model.init(jax.random.key(0), x), x)
      {'kernel': 64}

    Args:
      module: called as `module.apply(variables, x, train=False, mutable=["features"])`, without
        the last two arguments where its `__call__` takes no `train`.
      variables: {"params": ..., "batch_stats": ...}, what `module.init` returns. The paths of the
        result are relative to "params", such as "stage1_block0/conv1/kernel".
      x: input [n, ...], an array or a `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: the variables have no collection "params".
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        names = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else ""
        raise ValueError(
            f"the variables have no 'params' but {names or type(variables).__name__}: pass what "
            "module.init returns, {'params': params} and the model's other collections."
        )
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
