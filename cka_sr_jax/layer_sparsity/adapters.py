"""Chains from Flax models, and back: MLP parameters, Linen, NNX; BatchNorm folded in.

A model whose function is no chain of affine layers and ReLUs is refused with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from cka_sr_jax.layer_sparsity.chain import (
    Affine,
    Chain,
    apply_affine,
    check_chain,
    compose,
    like,
    to_float64,
)

# How far what reaches a layer may be from what the layer before gave, as a share of each value.
_TOLERANCE = 1e-4
# How far what a layer gives may be from kernel and bias, as a share of the largest value.
_LAYER_TOLERANCE = 1e-2
# Signs and sizes of the random values that probe a model: small ones tell gelu from relu, large
# ones relu6 and clipping (float16 ends at 6e4).
_PROBES = ((1, 1.0), (-1, 1.0), (1, 1e4), (-1, 1e4))

_REFUSED = {
    "leaky_relu": "leaky_relu is linear on non-negative values only, and gives negative ones on",
    "elu": "elu gives negative values on, which the next layer's condition does not cover",
    "celu": "celu gives negative values on, which the next layer's condition does not cover",
    "selu": "selu gives negative values on, which the next layer's condition does not cover",
    "relu6": "relu6 is linear below 6 only, which no condition on weights ensures",
    "hard_tanh": "hard_tanh is linear on [-1, 1] only, which no condition on weights ensures",
    "tanh": "tanh saturates, so it is linear nowhere",
    "sigmoid": "sigmoid saturates, so it is linear nowhere",
    "softplus": "softplus is linear nowhere",
    "gelu": "gelu is linear nowhere",
    "silu": "silu is linear nowhere",
}


def check_activation(activation: str | Callable[..., Any] | None) -> str:
    """How layers merge over this activation: "relu" (where the weights allow it) or "linear".

    ReLU is linear on non-negative values and gives only such, so its layer merges where W >= 0 and
    b >= 0. No activation at all (None, "linear", "identity") merges always.

    Args:
      activation: a name or a function such as `nn.relu`.

    Raises:
      ValueError: any other activation, with the reason.
    """
    while isinstance(activation, partial):
        activation = activation.func
    name = activation
    if not isinstance(activation, str):
        name = getattr(activation, "__name__", type(activation).__name__)
    if activation is None or name in ("linear", "identity"):
        return "linear"
    if name == "relu":
        return "relu"
    reason = _REFUSED.get({"swish": "silu"}.get(str(name), str(name)), f"{name} is not known")
    raise ValueError(f"layers do not merge over {name}: {reason}; use relu.")


def from_params(params: Mapping[str, Any], layers: Sequence[str]) -> tuple[Affine, ...]:
    """The chain of these layers of a parameter tree, in this order, with ReLU between them.

    The caller vouches for the order and the ReLUs; `from_linen` finds them by itself. Works inside
    `jit` and `grad`, so `layer_penalty(from_params(params, layers))` is a loss term.

    Args:
      params: of a Linen model, or the `nnx.state` of an NNX one.
      layers: paths of dicts with a "kernel", and a "bias" or none: "hidden0", "block/dense",
        "layers/0".

    Raises:
      ValueError: a path without a kernel; layers that do not follow one another.
    """
    chain = []
    for path in layers:
        node: Any = params
        for name in path.split("/"):
            # Keys are integers in the lists of an `nnx.State`.
            node = {str(key): value for key, value in node.items()} if _is_tree(node) else {}
            node = node.get(name)
        if not _is_tree(node) or "kernel" not in node:
            raise ValueError(
                f"the parameters have no layer {path!r} with a kernel: they have "
                f"{', '.join(map(str, params))}; pass variables['params'] and paths in it."
            )
        chain.append(_affine(_array(node["kernel"]), _array(node.get("bias"))))
    check_chain(chain)
    return tuple(chain)


def _is_tree(node: Any) -> bool:
    return isinstance(node, Mapping) and not isinstance(node, nnx.Variable)


def _array(value: Any) -> Any:
    """The array of an NNX variable; other values as they are, and None for an empty variable."""
    if not isinstance(value, nnx.Variable):
        return value
    return value[...] if jax.tree.leaves(value) else None


def from_mlp(params: Mapping[str, Any]) -> tuple[Affine, ...]:
    """The chain of `cka_sr_jax.models.MLP`: "hidden0", "hidden1", ..., "head", in this order.

    Works inside `jit` and `grad`, as `from_params`.

    Raises:
      ValueError: the parameters are not those of an MLP.
    """
    hidden = [name for name in params if re.fullmatch(r"hidden\d+", name)]
    hidden.sort(key=lambda name: int(name.removeprefix("hidden")))
    expected = [*(f"hidden{i}" for i in range(len(hidden))), "head"]
    if [*hidden, "head"] != expected or set(params) != set(expected):
        raise ValueError(
            f"these are not the parameters of an MLP, hidden0, hidden1, ..., head, but "
            f"{', '.join(map(str, params)) or 'none'}: pass variables['params'], or use from_linen."
        )
    return from_params(params, expected)


def to_mlp_params(chain: Chain) -> tuple[tuple[int, ...], dict[str, dict[str, Any]]]:
    """(hidden, params) such that `MLP(outputs, hidden)` with these parameters is the chain.

      hidden, params = to_mlp_params(merge_layers(from_mlp(params)))
      logits = MLP(10, hidden).apply({"params": params}, x, train=False)

    Raises:
      ValueError: as `check_chain`; a chain of convolutions.
    """
    check_chain(chain)
    if chain[0].kernel.ndim != 2:
        raise ValueError("an MLP has dense layers, and this is a chain of convolutions.")
    names = [*(f"hidden{i}" for i in range(len(chain) - 1)), "head"]
    params = {name: dict(layer._asdict()) for name, layer in zip(names, chain, strict=True)}
    return tuple(layer.kernel.shape[-1] for layer in chain[:-1]), params


def fold_batch_norm(
    layer: Affine,
    scale: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    eps: float = 1e-5,
) -> Affine:
    """The layer with the BatchNorm after it folded in, in inference form.

      s = scale / sqrt(var + eps);   kernel * s,   (b - mean) s + bias.

    The vectors have one number for each output of the layer, or are one number for all. Computed
    in float64 on the host.

    Raises:
      ValueError: as `check_chain`, with values; vectors of another length; inside jit or grad.
    """
    vectors = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    _check_concrete("fold_batch_norm", (layer, vectors), "from_params without the BatchNorm")
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


def from_linen(
    module: nn.Module, variables: Any, x: ArrayLike, **kwargs: Any
) -> tuple[Affine, ...]:
    """The chain that a Linen model of `Dense` (or `Conv`) layers computes, in execution order.

    Runs the model on random values, with others in place of each layer's output, so that what lies
    between two layers shows whatever the weights are. The model is accepted only if each layer's
    input is the ReLU of the output of the layer before, or that output itself (these two layers
    are merged at once). A BatchNorm right after a layer is folded into it. The input may be
    flattened first.

    Args:
      variables: {"params": ..., "batch_stats": ...}, as for `module.apply`.
      x: an input batch, of which only shape and type count.
      **kwargs: more arguments of the model, such as `train=False`.

    Raises:
      ValueError: no such layer; another activation, a residual connection or any other step
        between the layers; something before the first or after the last; strides, padding,
        dilation or groups that forbid merging; NaN weights.
    """
    if isinstance(variables, Mapping) and variables and "params" not in variables:
        raise ValueError(
            f"the variables have no 'params' but {', '.join(map(str, variables))}: pass what "
            "module.init returns, {'params': params}."
        )
    _check_concrete("from_linen", (variables, x), "from_params(variables['params'], LAYER_NAMES)")
    if jnp.size(x) == 0:
        raise ValueError(f"the input batch has shape {jnp.shape(x)}: pass one example at least.")
    inputs = [_probe(jnp.asarray(x), sign, scale, 0) for sign, scale in _PROBES]
    others: list[str] = []
    runs, outputs = zip(
        *(
            _record(module, variables, probe, kwargs, sign, scale, others)
            for probe, (sign, scale) in zip(inputs, _PROBES, strict=True)
        ),
        strict=True,
    )
    hint = f" (it has {others[0]}, which is neither)" if others else ""
    if not runs[0]:
        raise ValueError(
            f"the model has no nn.Dense or nn.Conv layer{hint}, so it is no chain of them."
        )
    if not all(_same(run[0].x, probe) for run, probe in zip(runs, inputs, strict=True)):
        raise ValueError(
            f"the first nn.Dense or nn.Conv layer, {runs[0][0].name}, is not applied to the "
            f"model's input{hint}: do what comes before it outside of the model."
        )
    chain: list[Affine] = []
    for i, call in enumerate(runs[0]):
        step = _step_before([run[: i + 1] for run in runs]) if i else "linear"
        _extend(chain, call.name, call.layer, step)
    if not all(_same(run[-1].y, output) for run, output in zip(runs, outputs, strict=True)):
        raise ValueError(
            f"the model's output is not that of its last layer, {runs[0][-1].name}: something "
            "comes after it (an activation, a residual connection), which a chain does not have."
        )
    check_chain(chain, values=True)
    return tuple(chain)


def from_nnx(model: nnx.Sequential | Iterable[Any]) -> tuple[Affine, ...]:
    """The chain of an `nnx.Sequential`, or of its parts in the order of execution.

    Parts are `nnx.Linear`, `nnx.Conv`, `nnx.BatchNorm` (folded in), `nnx.Dropout` (left out),
    activation functions, and more sequences; not subclasses of these, which may compute anything.
    Layers without an activation between are merged.

    Raises:
      ValueError: any other part; an activation other than ReLU, or one after the last layer or
        before the first; strides, padding, dilation or groups that forbid merging; NaN weights.
    """
    chain: list[Affine] = []
    step = "linear"
    for i, part in enumerate(_parts(model)):
        name = f"{type(part).__name__} {i}"
        if type(part) is nnx.Dropout:
            continue
        if type(part) in (nnx.Linear, nnx.Conv, nnx.BatchNorm):
            _extend(chain, name, _nnx_layer(name, part), step)
            step = "linear"
        elif isinstance(part, nnx.Module):
            raise ValueError(
                f"{name} is no part of a chain: pass a Sequential or a list of nnx.Linear, "
                "nnx.Conv, nnx.BatchNorm and activation functions."
            )
        elif check_activation(part) == "relu":
            step = "relu"
            if not chain:
                raise ValueError("an activation comes before the first layer: do it outside.")
    if step == "relu":
        raise ValueError("an activation follows the last layer, which a chain does not have.")
    check_chain(chain, values=True)
    return tuple(chain)


# A layer, or what folds a BatchNorm into the layer before it.
_Layer = Affine | Callable[[Affine], Affine]


class _Call(NamedTuple):
    """One call of a layer while a Linen model ran."""

    name: str
    layer: _Layer
    x: jax.Array
    y: jax.Array


def _extend(chain: list[Affine], name: str, layer: _Layer, step: str) -> None:
    """Append a layer that comes after this step, or merge it where nothing lies between."""
    if not isinstance(layer, Affine):
        if not chain or step != "linear":
            raise ValueError(
                f"the BatchNorm {name} does not follow a layer directly: only one between a layer "
                "and its activation folds into the layer."
            )
        chain[-1] = layer(chain[-1])
    elif chain and step == "linear":
        chain[-1] = compose(chain[-1], layer)
    else:
        chain.append(layer)


def _record(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    kwargs: Mapping[str, Any],
    sign: int,
    scale: float,
    others: list[str],
) -> tuple[list[_Call], jax.Array]:
    """The calls of the model's layers in the order of execution, and its output.

    Each layer's output is replaced by random values; `others` receives the modules with parameters
    that are no such layer.
    """
    calls: list[_Call] = []

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return y
        name = "/".join(layer.path) or type(layer).__name__
        if isinstance(layer, nn.Dense | nn.Conv | nn.BatchNorm):
            x = args[0] if args else next(iter(kwargs.values()))
            affine = _linen_layer(name, layer, jnp.ndim(x))
            _check_computes(name, layer, affine, x, y)
            y = _probe(y, sign, scale, 1 + len(calls))
            calls.append(_Call(name, affine, x, y))
        elif any(not isinstance(p, Mapping) for p in layer.variables.get("params", {}).values()):
            others.append(f"the {type(layer).__name__} {name}")
        return y

    with nn.intercept_methods(interceptor):
        output: Any = module.apply(variables, x, **kwargs)
    return calls, output


def _probe(like: jax.Array, sign: int, scale: float, seed: int) -> jax.Array:
    """Random values of this shape and type, of both signs where the type has them."""
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.asarray(sign * scale * rng.normal(size=like.shape), like.dtype)
    return jnp.asarray(rng.integers(0, 2 if like.dtype == bool else 128, like.shape), like.dtype)


def _check_computes(name: str, module: nn.Module, layer: _Layer, x: Any, y: Any) -> None:
    """Raise ValueError where a layer, such as one of a subclass, computes something else."""
    x = jnp.asarray(x, y.dtype)
    if not isinstance(layer, Affine):
        width = x.shape[-1]
        layer = layer(Affine(np.eye(width), np.zeros(width)))
    layer = Affine(*(jnp.asarray(array, y.dtype) for array in layer))
    if layer.kernel.ndim == 4:
        x = x.reshape(-1, *x.shape[-3:])
    expected = to_float64(apply_affine(layer, x)).ravel()
    if not np.isfinite(expected).all():
        return  # NaN weights get a sentence of their own, and float16 overflows on large values
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
    for name in _REFUSED:
        if explains(lambda run, name=name: getattr(jax.nn, name)(run[-2].y)):  # type: ignore[misc]
            check_activation(name)
    for k in range(len(runs[0]) - 1):
        for skip in (lambda call: call.x, lambda call: call.y, lambda call: nn.relu(call.y)):
            if any(
                explains(lambda run, k=k, skip=skip, add=add: add(run[-2].y, skip(run[k])))  # type: ignore[misc]
                for add in _RESIDUAL_SUMS
            ):
                raise ValueError(
                    f"a residual connection ends between {below} and {above}: what it adds is not "
                    "part of a chain, and these layers do not merge."
                )
    raise ValueError(
        f"{above} is not applied to the ReLU of the output of {below}: the model is no chain of "
        "layers with ReLU between them."
    )


def _add(y: jax.Array, skip: jax.Array) -> jax.Array:
    return y + skip if y.shape == skip.shape else y


_RESIDUAL_SUMS = (
    _add,
    lambda y, skip: nn.relu(_add(y, skip)),
    lambda y, skip: _add(nn.relu(y), skip),
)


def _same(x: ArrayLike, y: ArrayLike) -> bool:
    """Whether two arrays hold the same values, flattened or not, but for rounding."""
    a, b = to_float64(x).ravel(), to_float64(y).ravel()
    with np.errstate(invalid="ignore"):  # infinite values of float16 differ
        return a.size == b.size and bool(np.all(np.abs(a - b) <= _TOLERANCE * np.abs(b)))


def _check_concrete(caller: str, tree: Any, instead: str) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"{caller} looks at the weights' values, which jit and grad hide: call it outside of "
            f"them; for a penalty in the loss use {instead}."
        )


def _linen_layer(name: str, module: nn.Module, rank: int) -> _Layer:
    params = module.variables.get("params", {})
    if isinstance(module, nn.BatchNorm):
        _check_axis(name, module.axis, rank)
        return _folding(params, module.variables["batch_stats"], module.epsilon)
    if isinstance(module, nn.Conv):
        _check_convolution(name, module)
    return _affine(params["kernel"], params.get("bias"))


def _nnx_layer(name: str, module: Any) -> _Layer:
    def value(attribute: str) -> Any:
        return _array(getattr(module, attribute, None))

    _check_concrete(
        "from_nnx", nnx.state(module), "from_params(nnx.state(model), ['layers/0', ...])"
    )
    if isinstance(module, nnx.BatchNorm):
        arrays = {key: value(key) for key in ("scale", "bias", "mean", "var")}
        arrays = {key: array for key, array in arrays.items() if array is not None}
        fold = _folding(arrays, arrays, module.epsilon)

        def fold_over_last(layer: Affine) -> Affine:
            _check_axis(name, module.axis, layer.kernel.ndim)
            return fold(layer)

        return fold_over_last
    if isinstance(module, nnx.Conv):
        _check_convolution(name, module)
    return _affine(value("kernel"), value("bias"))


def _folding(
    params: Mapping[str, Any], stats: Mapping[str, Any], eps: float
) -> Callable[[Affine], Affine]:
    def fold(layer: Affine) -> Affine:
        scale, bias = params.get("scale", 1.0), params.get("bias", 0.0)
        return fold_batch_norm(layer, scale, bias, stats["mean"], stats["var"], eps)

    return fold


def _check_axis(name: str, axis: Any, rank: int) -> None:
    if any(a not in (-1, rank - 1) for a in np.atleast_1d(axis)):
        raise ValueError(
            f"the BatchNorm {name} has axis {axis}: only one over the last axis, which holds a "
            "layer's outputs, folds into the layer."
        )


def _check_convolution(name: str, module: Any) -> None:
    """Raise ValueError unless a Linen or NNX convolution is VALID, of stride 1 and plain."""
    size = tuple(np.atleast_1d(module.kernel_size))

    def ones(value: Any) -> bool:
        return value is None or bool(np.all(np.asarray(value) == 1))

    if len(size) != 2:
        raise ValueError(f"the convolution {name} is not over two axes: only those are merged.")
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
            f"the convolution {name} has padding {padding!r}: zeros at the edge of what a layer "
            "gives are not what a merged one would compute there, so use 'VALID'."
        )
    if not (ones(module.kernel_dilation) and ones(module.input_dilation)):
        raise ValueError(f"the convolution {name} is dilated: only plain ones are merged.")
    if module.feature_group_count != 1 or module.mask is not None:
        raise ValueError(f"the convolution {name} has groups or a mask: only plain ones merge.")


def _affine(kernel: Any, bias: Any) -> Affine:
    return Affine(kernel, jnp.zeros(kernel.shape[-1:], kernel.dtype) if bias is None else bias)


def _parts(model: Any) -> Iterator[Any]:
    """The parts of nested sequences, in order."""
    if type(model) is nnx.Sequential:
        model = model.layers
    elif not _is_sequence(model):
        raise ValueError(
            f"a {type(model).__name__} is no nnx.Sequential: pass one, or the list of its parts in "
            "the order of execution; a Linen model goes to from_linen."
        )
    for part in model:
        if type(part) is nnx.Sequential or _is_sequence(part):
            yield from _parts(part)
        else:
            yield part


def _is_sequence(model: Any) -> bool:
    """Subclasses of Sequential may compute anything, and are none."""
    if isinstance(model, nnx.Module):
        return isinstance(model, nnx.List)
    return isinstance(model, Iterable) and not isinstance(model, str | Mapping)
