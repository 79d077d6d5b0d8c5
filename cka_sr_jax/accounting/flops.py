"""How often a Flax Linen module applies each kernel; the module is traced and not run."""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr

from cka_sr_jax._paths import leaf_paths

_MARK = "cka_sr_jax kernel "  # begins the name of a value at which a kernel is applied


def kernel_positions(module: nn.Module, variables: Mapping[str, Any], x: Any) -> dict[str, int]:
    """Path of each kernel -> number of output positions per example at which it is applied.

    The paths are in the order in which the module first applies them.

      multiply-adds of one example = sum over kernels of size * positions

    A convolution has H_out * W_out positions, a transposed one H_in * W_in, a dense layer on a
    vector has 1, and a layer that is called twice counts both calls. Products with a convolution's
    zero padding are included. An array with a stack of layers, of `nn.scan` or `nn.vmap`, has the
    positions of one of them. What a `while_loop` runs counts once, and of the branches of a
    condition the one with the most multiply-adds counts.

    The module may hold layers like `nn.Conv` (any strides, dilation, groups) and `nn.Dense`: their
    parameter is called "kernel", and each output is made from a full kernel. An `nn.Embed` counts
    where it is the last layer (`attend`). Not counted are products that no such layer makes, and
    kernels that are not parameters as they are (`nn.map_variables`). `nn.Einsum` counts right if
    its last axis is its only output.

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
    options: dict[str, Any] = {}
    if "train" in inspect.signature(module.__call__).parameters:
        options = {"train": False, "mutable": ["features"]}

    # A new function on each call, so that no cached trace keeps the interceptor from running.
    def forward(variables: Mapping[str, Any], x: Any) -> Any:
        return module.apply(variables, x, **options)

    # The marks are in the program, and not counted while it is traced: a body is traced as often
    # as a transformation likes, and then runs as often as its loop says.
    with nn.intercept_methods(_mark):
        program = jax.make_jaxpr(forward)(variables, x)
    sizes = {path: math.prod(np.shape(leaf)) for path, leaf in leaf_paths(variables["params"])}
    positions: Counter[str] = Counter()
    for (path, size), count in _count(program.jaxpr).items():
        path = path if path in sizes else f"{path}/value"  # of `nn.with_partitioning`
        if path in sizes:
            positions[path] += count * size // (sizes[path] * x.shape[0])
    return dict(positions)


def _mark(
    call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Call a layer, and name its output, or a transposed convolution's input, after its kernel."""
    layer, method = context.module, context.method_name
    if method == "attend" and isinstance(layer, nn.Embed):
        return _named(call(*args, **kwargs), layer, "embedding", layer.num_embeddings)
    if method != "__call__" or not layer.has_variable("params", "kernel"):
        return call(*args, **kwargs)
    kernel: Any = nn.meta.unbox(layer.get_variable("params", "kernel"))
    if isinstance(layer, nn.ConvTranspose):
        inputs = kernel.shape[-1 if layer.transpose_kernel else -2]
        return call(_named(args[0], layer, "kernel", inputs), *args[1:], **kwargs)
    # `nn.DenseGeneral` may spread its features over several axes.
    features = int(np.prod(getattr(layer, "features", kernel.shape[-1])))
    return _named(call(*args, **kwargs), layer, "kernel", features)


def _named(value: Any, layer: nn.Module, leaf: str, features: int) -> Any:
    if not isinstance(value, jax.Array):
        return value
    variable: Any = nn.meta.unbox(layer.get_variable("params", leaf))
    path = "/".join((*layer.path, leaf))
    return checkpoint_name(value, _MARK + json.dumps([path, features, math.prod(variable.shape)]))


def _count(program: Jaxpr) -> Counter[tuple[str, int]]:
    """{(path, size of a kernel where it is applied): positions of all examples together}."""
    counts: Counter[tuple[str, int]] = Counter()
    for equation in program.eqns:
        params = equation.params
        if equation.primitive.name == "name" and params["name"].startswith(_MARK):
            path, features, size = json.loads(params["name"].removeprefix(_MARK))
            out: Any = equation.outvars[0].aval
            counts[path, size] += out.size // features
            continue
        inner = [_count(jaxpr) for jaxpr in _programs(params)]
        if equation.primitive.name == "cond":
            inner = [max(inner, key=_multiply_adds)]
        times = params["length"] if equation.primitive.name == "scan" else 1
        for found in inner:
            for key, count in found.items():
                counts[key] += count * times
    return counts


def _multiply_adds(counts: Counter[tuple[str, int]]) -> int:
    return sum(size * count for (_, size), count in counts.items())


def _programs(params: Mapping[str, Any]) -> list[Jaxpr]:
    """The programs that an operation runs, as loops, jit, remat and custom derivatives do."""
    entries = [
        value
        for entry in params.values()
        for value in (entry if isinstance(entry, tuple | list) else [entry])
    ]
    programs = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in entries]
    return [program for program in programs if isinstance(program, Jaxpr)]
