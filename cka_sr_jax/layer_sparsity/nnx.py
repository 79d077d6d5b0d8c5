"""Chains from NNX models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flax import nnx

from cka_sr_jax.layer_sparsity.activations import check_activation
from cka_sr_jax.layer_sparsity.chain import Affine, check_chain
from cka_sr_jax.layer_sparsity.parameters import array_of
from cka_sr_jax.layer_sparsity.parts import (
    Part,
    affine,
    append_part,
    batch_norm,
    check_batch_norm_axis,
    check_concrete,
    check_convolution,
)

# Flax 0.11, which has no `nnx.List`, keeps a list of modules as it is.
LISTS: tuple[type, ...] = (nnx.List,) if hasattr(nnx, "List") else ()


def from_nnx(model: nnx.Sequential | Iterable[Any]) -> tuple[Affine, ...]:
    """The chain of an `nnx.Sequential`, or of its parts in the order of execution.

    Parts are `nnx.Linear`, `nnx.Conv`, `nnx.BatchNorm` (folded in), `nnx.Dropout` (left out),
    activation functions, and more sequences. Subclasses of these are refused, as they may compute
    anything. Layers without an activation between them are merged.

      >>> rngs = nnx.Rngs(0)
      >>> chain = from_nnx([nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs)])
      >>> [layer.kernel.shape for layer in chain]
      [(4, 8), (8, 2)]

    Raises:
      ValueError: any other part; an activation other than ReLU, or one after the last layer or
        before the first; strides, padding, dilation or groups that forbid merging; NaN weights;
        inside jit or grad.
    """
    chain: list[Affine] = []
    step = "linear"
    for i, part in enumerate(_parts(model)):
        name = f"{type(part).__name__} {i}"
        if type(part) is nnx.Dropout:
            continue
        if type(part) in (nnx.Linear, nnx.Conv, nnx.BatchNorm):
            append_part(chain, name, _part(name, part), step)
            step = "linear"
        elif isinstance(part, nnx.Module):
            raise ValueError(
                f"{name} cannot be part of a chain: pass a Sequential or a list of nnx.Linear, "
                "nnx.Conv, nnx.BatchNorm and activation functions."
            )
        elif check_activation(part) == "relu":
            step = "relu"
            if not chain:
                raise ValueError(
                    "an activation comes before the first layer: apply it outside of the model."
                )
    if step == "relu":
        raise ValueError(
            "an activation follows the last layer, and a chain ends with a layer: apply it outside."
        )
    check_chain(chain, values=True)
    return tuple(chain)


def _part(name: str, module: Any) -> Part:
    def value(attribute: str) -> Any:
        return array_of(getattr(module, attribute, None))

    check_concrete(
        "from_nnx", nnx.state(module), "from_params(nnx.state(model), ['layers/0', ...])"
    )
    if isinstance(module, nnx.BatchNorm):
        arrays = {key: value(key) for key in ("scale", "bias", "mean", "var")}
        arrays = {key: array for key, array in arrays.items() if array is not None}
        fold: Any = batch_norm(arrays, arrays, module.epsilon)

        def fold_over_last(layer: Affine) -> Affine:
            check_batch_norm_axis(name, module.axis, layer.kernel.ndim)
            return fold(layer)

        return fold_over_last
    if isinstance(module, nnx.Conv):
        check_convolution(name, module)
    return affine(value("kernel"), value("bias"))


def _parts(model: Any) -> Iterator[Any]:
    """The parts of nested sequences, in order."""
    if type(model) is nnx.Sequential:
        model = model.layers
    elif not _is_sequence(model):
        raise ValueError(
            f"a {type(model).__name__} is not an nnx.Sequential: pass one, or the list of its "
            "parts in the order of execution; a Linen model goes to from_linen."
        )
    for part in model:
        if type(part) is nnx.Sequential or _is_sequence(part):
            yield from _parts(part)
        else:
            yield part


def _is_sequence(model: Any) -> bool:
    """Whether this is a plain list of parts; a subclass of Sequential may compute anything."""
    if isinstance(model, nnx.Module):
        return isinstance(model, LISTS)
    return isinstance(model, Iterable) and not isinstance(model, str | Mapping)
