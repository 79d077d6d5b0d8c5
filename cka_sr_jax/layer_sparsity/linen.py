"""Chains from Linen models, found by running them on random values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cka_sr_jax.layer_sparsity.activations import REFUSED, check_activation
from cka_sr_jax.layer_sparsity.chain import Affine, apply_affine, check_chain, to_float64
from cka_sr_jax.layer_sparsity.parts import (
    Part,
    affine,
    append_part,
    batch_norm,
    check_batch_norm_axis,
    check_concrete,
    check_convolution,
)

# A layer's input equals the output of the layer before, up to this share of each value.
_TOLERANCE = 1e-4
# A layer computes what its kernel and bias say, up to this share of the largest value.
_LAYER_TOLERANCE = 1e-2


class _Probe(NamedTuple):
    """Random values that replace a model's input and its layers' outputs.

    Attributes:
      sign: of all values; both are tried.
      scale: 1 tells gelu from relu, 1e4 tells relu6 and clipping from relu (float16 ends at 6e4).
    """

    sign: int
    scale: float

    def values(self, like: jax.Array, seed: int) -> jax.Array:
        """Values of this shape and type, of both signs where the type has them."""
        rng = np.random.default_rng(seed)
        if jnp.issubdtype(like.dtype, jnp.inexact):
            return jnp.asarray(self.sign * self.scale * rng.normal(size=like.shape), like.dtype)
        most = 2 if like.dtype == bool else 128
        return jnp.asarray(rng.integers(0, most, like.shape), like.dtype)


_PROBES = (_Probe(1, 1.0), _Probe(-1, 1.0), _Probe(1, 1e4), _Probe(-1, 1e4))


class _Call(NamedTuple):
    """One call of a layer while a model ran: x was its input and y replaced its output."""

    name: str
    part: Part
    x: jax.Array
    y: jax.Array


class _Run(NamedTuple):
    """A model applied to x: the calls of its layers in order, and its output.

    `others` are the modules with parameters that are not such layers.
    """

    x: jax.Array
    calls: list[_Call]
    output: jax.Array
    others: list[str]


def from_linen(
    module: nn.Module, variables: Any, x: ArrayLike, **kwargs: Any
) -> tuple[Affine, ...]:
    """The chain that a Linen model of `Dense` (or `Conv`) layers computes, in execution order.

    Runs the model on random values, and replaces each layer's output by others. What lies between
    two layers then shows whatever the weights are. The model is accepted if each layer's input is
    the ReLU of the output of the layer before, or that output itself (these two layers are merged
    at once). A BatchNorm right after a layer is folded into it. The input may be flattened first.

      >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.zeros((1, 4))
      >>> chain = from_linen(model, model.init(jax.random.key(0), x), x)
      >>> [layer.kernel.shape for layer in chain]
      [(4, 8), (8, 2)]

    Args:
      module: called as `module.apply(variables, x, **kwargs)`.
      variables: {"params": ..., "batch_stats": ...}, as for `module.apply`.
      x: an input batch; only its shape and type count.
      **kwargs: more arguments of the model, such as `train=False`.

    Raises:
      ValueError: no such layer; another activation, a residual connection or any other step
        between the layers; something before the first or after the last; strides, padding,
        dilation or groups that forbid merging; NaN weights; inside jit or grad.
    """
    if isinstance(variables, Mapping) and variables and "params" not in variables:
        raise ValueError(
            f"the variables have no 'params' but {', '.join(map(str, variables))}: pass what "
            "module.init returns, {'params': params}."
        )
    check_concrete("from_linen", (variables, x), "from_params(variables['params'], LAYER_NAMES)")
    if jnp.size(x) == 0:
        raise ValueError(f"the input batch has shape {jnp.shape(x)}: pass one example at least.")
    runs = [_run(module, variables, jnp.asarray(x), kwargs, probe) for probe in _PROBES]
    calls, others = runs[0].calls, runs[0].others
    hint = f" (it has {others[0]}, which is neither)" if others else ""
    if not calls:
        raise ValueError(
            f"the model has no nn.Dense or nn.Conv layer{hint}: make it of these and ReLUs."
        )
    if not all(_same(run.calls[0].x, run.x) for run in runs):
        raise ValueError(
            f"the first nn.Dense or nn.Conv layer, {calls[0].name}, is not applied to the "
            f"model's input{hint}: do what comes before it outside of the model."
        )
    chain: list[Affine] = []
    for i, call in enumerate(calls):
        step = _step_before([run.calls[: i + 1] for run in runs]) if i else "linear"
        append_part(chain, call.name, call.part, step)
    if not all(_same(run.calls[-1].y, run.output) for run in runs):
        raise ValueError(
            f"the model's output is not that of its last layer, {calls[-1].name}: do what comes "
            "after it (an activation, a residual connection) outside of the model."
        )
    check_chain(chain, values=True)
    return tuple(chain)


def _run(
    module: nn.Module, variables: Any, x: jax.Array, kwargs: Mapping[str, Any], probe: _Probe
) -> _Run:
    """Apply the model with random values in place of its input and of each layer's output."""
    calls: list[_Call] = []
    others: list[str] = []

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return y
        name = "/".join(layer.path) or type(layer).__name__
        if isinstance(layer, nn.Dense | nn.Conv | nn.BatchNorm):
            x = args[0] if args else next(iter(kwargs.values()))
            part = _part(name, layer, jnp.ndim(x))
            _check_computes(name, layer, part, x, y)
            y = probe.values(y, 1 + len(calls))
            calls.append(_Call(name, part, x, y))
        elif any(not isinstance(p, Mapping) for p in layer.variables.get("params", {}).values()):
            others.append(f"the {type(layer).__name__} {name}")
        return y

    x = probe.values(x, 0)
    with nn.intercept_methods(interceptor):
        output: Any = module.apply(variables, x, **kwargs)
    return _Run(x, calls, output, others)


def _check_computes(name: str, module: nn.Module, part: Part, x: Any, y: Any) -> None:
    """Raise ValueError where a layer, such as one of a subclass, computes something else."""
    x = jnp.asarray(x, y.dtype)
    if isinstance(part, Affine):
        layer = part
    else:
        width = x.shape[-1]
        layer = part(Affine(np.eye(width), np.zeros(width)))
    layer = Affine(*(jnp.asarray(array, y.dtype) for array in layer))
    if layer.kernel.ndim == 4:
        x = x.reshape(-1, *x.shape[-3:])
    expected = to_float64(apply_affine(layer, x)).ravel()
    if not np.isfinite(expected).all():
        return  # float16 overflows on large values; `check_chain` refuses NaN weights
    limit = max(_LAYER_TOLERANCE, 4 * float(jnp.finfo(y.dtype).eps)) * np.abs(expected).max()
    if not np.all(np.abs(to_float64(y).ravel() - expected) <= limit):
        raise ValueError(
            f"the {type(module).__name__} {name} does not compute what its kernel and bias say: "
            "use a plain nn.Dense, nn.Conv or nn.BatchNorm."
        )


def _step_before(runs: Sequence[Sequence[_Call]]) -> str:
    """What lies between the last call of each run and the call before it: "relu" or "linear".

    Raises:
      ValueError: something else.
    """

    def explains(function: Callable[[Sequence[_Call]], jax.Array]) -> bool:
        return all(_same(run[-1].x, function(run)) for run in runs)

    if explains(lambda run: nn.relu(run[-2].y)):
        return "relu"
    if explains(lambda run: run[-2].y):
        return "linear"
    below, above = runs[0][-2].name, runs[0][-1].name
    for name in REFUSED:
        if explains(lambda run, name=name: getattr(jax.nn, name)(run[-2].y)):  # type: ignore[misc]
            check_activation(name)
    for k in range(len(runs[0]) - 1):
        for skip in (lambda call: call.x, lambda call: call.y, lambda call: nn.relu(call.y)):
            if any(
                explains(lambda run, k=k, skip=skip, add=add: add(run[-2].y, skip(run[k])))  # type: ignore[misc]
                for add in _RESIDUAL_SUMS
            ):
                raise ValueError(
                    f"a residual connection ends between {below} and {above}: layers do not merge "
                    "over it, so take the chains before and after it apart."
                )
    raise ValueError(
        f"{above} is not applied to the ReLU of the output of {below}: layers merge only in a "
        "chain with ReLU between them."
    )


def _add(y: jax.Array, skip: jax.Array) -> jax.Array:
    return y + skip if y.shape == skip.shape else y


_RESIDUAL_SUMS = (
    _add,
    lambda y, skip: nn.relu(_add(y, skip)),
    lambda y, skip: _add(nn.relu(y), skip),
)


def _same(x: ArrayLike, y: ArrayLike) -> bool:
    """Whether two arrays hold the same values up to rounding, flattened or not."""
    a, b = to_float64(x).ravel(), to_float64(y).ravel()
    with np.errstate(invalid="ignore"):  # infinite values of float16 differ
        return a.size == b.size and bool(np.all(np.abs(a - b) <= _TOLERANCE * np.abs(b)))


def _part(name: str, module: nn.Module, rank: int) -> Part:
    params = module.variables.get("params", {})
    if isinstance(module, nn.BatchNorm):
        check_batch_norm_axis(name, module.axis, rank)
        return batch_norm(params, module.variables["batch_stats"], module.epsilon)
    if isinstance(module, nn.Conv):
        check_convolution(name, module)
    return affine(params["kernel"], params.get("bias"))
