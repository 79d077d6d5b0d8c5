"""Chains from parameter trees, and back to the parameters of an MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from cka_sr_jax.layer_sparsity.chain import Affine, Chain, check_chain
from cka_sr_jax.layer_sparsity.parts import affine


def from_params(params: Mapping[str, Any], layers: Sequence[str]) -> tuple[Affine, ...]:
    """The chain of these layers of a parameter tree, in this order, with ReLU between them.

    The caller vouches for the order and the ReLUs; `from_linen` finds both by itself. Works inside
    `jit` and `grad`, so `layer_penalty(from_params(params, layers))` is a loss term.

      >>> import jax.numpy as jnp
      >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
      >>> [layer.kernel.shape for layer in from_params(params, ["a", "b"])]
      [(2, 3), (3, 1)]

    Args:
      params: of a Linen model, or the `nnx.state` of an NNX one.
      layers: paths of dicts with a "kernel" and an optional "bias": "hidden0", "block/dense",
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
        chain.append(affine(array_of(node["kernel"]), array_of(node.get("bias"))))
    check_chain(chain)
    return tuple(chain)


def _is_tree(node: Any) -> bool:
    return isinstance(node, Mapping) and not isinstance(node, nnx.Variable)


def array_of(value: Any) -> Any:
    """The array of an NNX variable, None for an empty variable, and other values as they are."""
    if not isinstance(value, nnx.Variable):
        return value
    return value[...] if jax.tree.leaves(value) else None


def from_mlp(params: Mapping[str, Any]) -> tuple[Affine, ...]:
    """The chain of `cka_sr_jax.models.MLP`: "hidden0", "hidden1", ..., "head", in this order.

    Works inside `jit` and `grad`, as `from_params`. The function reads the names alone, so any
    parameters with these names will do.

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

    Returns:
      The widths of the hidden layers, and {"hidden0": {"kernel", "bias"}, ..., "head": ...}.

    Raises:
      ValueError: as `check_chain`; a chain of convolutions.
    """
    check_chain(chain)
    if chain[0].kernel.ndim != 2:
        raise ValueError("an MLP has dense layers, and this is a chain of convolutions.")
    names = [*(f"hidden{i}" for i in range(len(chain) - 1)), "head"]
    params = {name: dict(layer._asdict()) for name, layer in zip(names, chain, strict=True)}
    return tuple(layer.kernel.shape[-1] for layer in chain[:-1]), params
