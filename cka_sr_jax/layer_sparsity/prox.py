"""Proximal steps, which reach exactly 0: negative parts of layers, connections and units.

A gradient step on a norm only shrinks it; the proximal step of the same norm reaches 0.

  penalty                    proximal map of an array    Optax transform
  layer_penalty              shrink_negative_part        layer_prox
  l1_penalty, connections    shrink_weights              l1_prox
  row_group_penalty, units   shrink_units                unit_prox
  a residual branch's norm   shrink_group                branch_prox

A map `shrink_*(w, t)` is a pure function of weights. A transform `*_prox(strength, learning_rate,
layers)` goes after the optimizer in `optax.chain` and applies its map to the new parameters.

`shrink_weights` is the soft threshold of the lasso, and `shrink_units` and `shrink_group` are those
of the group lasso (Parikh and Boyd 2014, "Proximal Algorithms", section 6.5).
`shrink_negative_part` is derived here: it is the group lasso's on the negative part alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cka_sr_jax._paths import leaf_paths, matches
from cka_sr_jax.layer_sparsity.penalty import negative_norm, safe_norm


def shrink_negative_part(group: Any, t: float | Float[ArrayLike, ""]) -> Any:
    """argmin_v 1/2 ||v - w||_F^2 + t ||min(v, 0)||_F, for an array or a pytree as one group.

    Positive entries stay. Negative entries are multiplied by max(0, 1 - t / ||min(w, 0)||_F); all
    become exactly 0 where this norm is at most t.

      >>> print(shrink_negative_part(jnp.array([-3.0, -4.0, 5.0]), 2.5))
      [-1.5 -2.   5. ]

    Raises:
      ValueError: t is negative or NaN.
    """
    _check_threshold(t)
    norm = negative_norm(group)
    keep = norm > t
    factor = 1 - t / jnp.where(keep, norm, 1)

    def shrink(w: Any) -> Array:  # NumPy arrays too, whose comparison keeps subnormal numbers
        shrunk = jnp.where(keep, w.astype(factor.dtype) * factor, 0).astype(w.dtype)
        return jnp.where(w < 0, shrunk, w)

    return jax.tree.map(shrink, group)


def shrink_weights(
    w: Float[ArrayLike, "*shape"], t: float | Float[ArrayLike, ""]
) -> Float[Array, "*shape"]:
    """argmin_v 1/2 ||v - w||^2 + t ||v||_1: each entry moves by t toward 0 and stops there.

    >>> print(shrink_weights(jnp.array([-3.0, 0.5, 2.0]), 1.0))
    [-2.  0.  1.]

    Raises:
      ValueError: t is negative or NaN.
    """
    _check_threshold(t)
    w = jnp.asarray(w)
    return jnp.where(jnp.abs(w) > t, w - jnp.sign(w) * t, 0).astype(w.dtype)


def shrink_units(
    kernel: Float[ArrayLike, "*inputs outputs"], t: float | Float[ArrayLike, ""]
) -> Float[Array, "*inputs outputs"]:
    """argmin_v 1/2 ||v - w||_F^2 + t sum_u ||v_u||_2 over the units u, the kernel's last axis.

    The incoming weights of a unit are multiplied by max(0, 1 - t / their norm); all become exactly
    0 where their norm is at most t.

      >>> print(shrink_units(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 2.5))
      [[1.5 0. ]
       [2.  0. ]]

    Raises:
      ValueError: t is negative or NaN.
    """
    _check_threshold(t)
    kernel = jnp.asarray(kernel)
    norms = jax.vmap(safe_norm, in_axes=-1)(kernel)
    keep = norms > t
    factors = jnp.where(keep, 1 - t / jnp.where(keep, norms, 1), 0)
    factors = jnp.broadcast_to(factors, kernel.shape)
    return (kernel.astype(factors.dtype) * factors).astype(kernel.dtype)


def shrink_group(group: Any, t: float | Float[ArrayLike, ""]) -> Any:
    """argmin_v 1/2 ||v - w||_F^2 + t ||v||_F, for an array or a pytree as one group.

    All entries are multiplied by max(0, 1 - t / ||w||_F); they become exactly 0 where the norm is
    at most t.

      >>> print(shrink_group(jnp.array([3.0, -4.0]), 2.5))
      [ 1.5 -2. ]

    Raises:
      ValueError: t is negative or NaN.
    """
    _check_threshold(t)
    norm = safe_norm(group)
    keep = norm > t
    factor = jnp.where(keep, 1 - t / jnp.where(keep, norm, 1), 0)
    return jax.tree.map(lambda w: (w.astype(factor.dtype) * factor).astype(w.dtype), group)


def _check_threshold(t: Any) -> None:
    if not isinstance(t, jax.core.Tracer) and (np.ndim(t) or not t >= 0):
        raise ValueError(f"t={t} is not one number >= 0: pass strength * learning_rate.")


class LayerProxState(NamedTuple):
    """State of `layer_prox`, `l1_prox`, `unit_prox` and `branch_prox`.

    Attributes:
      step: number of updates so far, for a schedule of the learning rate.
    """

    step: Int[Array, ""]


def layer_prox(
    strength: float,
    learning_rate: float | Callable[[Any], Any],
    layers: str | Sequence[str],
) -> optax.GradientTransformation:
    """Proximal gradient steps for strength * sum_j ||neg(W_j, b_j)||_F, as an Optax transform.

    Chain it after the optimizer. It changes the updates such that `optax.apply_updates(params,
    updates)` gives, in each of the layers,

      shrink_negative_part(params + updates, strength * learning_rate).

    Positive weights become what the optimizer wants; the negative part shrinks, and is exactly 0
    once it is small. Zeros stay 0, so `sparsify` goes around the chain:

      tx = optax.chain(optax.sgd(0.1), layer_prox(1e-3, 0.1, layers="hidden[1-9]*"))
      tx = sparsify(tx, rule)

    The step is exact for SGD. For momentum and Adam it is the usual approximation, with one scalar
    step size for all weights. Use one `layer_prox` for each strength.

      >>> tx = optax.chain(optax.sgd(0.1), layer_prox(10.0, 0.1, layers="dense"))
      >>> params = {"dense": {"kernel": jnp.array([[-0.5, 2.0]]), "bias": jnp.array([-0.3, 0.0])}}
      >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["dense"]["kernel"])
      [[0. 2.]]

    Args:
      strength: r of `layer_penalty`; leave that penalty out of the loss.
      learning_rate: the optimizer's; a number or a schedule of the step.
      layers: path patterns of layers (not of their arrays): "hidden1", "block*/dense". Each layer
        that matches, kernel and bias, is one group. The paths of a chain are its indices:
        `[str(j) for j in candidate_layers(chain)]`.

    Raises:
      ValueError: a strength or learning rate that is negative or not a finite number; no layers;
        at `init`, a pattern that matches no layer; at `update`, no parameters.
    """
    return _proximal(shrink_negative_part, strength, learning_rate, layers)


def l1_prox(
    strength: float, learning_rate: float | Callable[[Any], Any], layers: str | Sequence[str]
) -> optax.GradientTransformation:
    """As `layer_prox`, for connection sparsity: `shrink_weights` of the layers' kernels.

    Kernels get weights of exactly 0; biases stay. Before a `unit_prox` of the same layers it makes
    the proximal step of the sum of both penalties.

    Args and Raises: as `layer_prox`, with the strength of `l1_penalty`.
    """
    return _proximal(partial(_on_kernels, shrink_weights), strength, learning_rate, layers)


def unit_prox(
    strength: float, learning_rate: float | Callable[[Any], Any], layers: str | Sequence[str]
) -> optax.GradientTransformation:
    """As `layer_prox`, for node sparsity: `shrink_units` of the layers' kernels.

    All incoming weights of a unit become exactly 0 at once; `drop_dead_units` removes the unit.
    Name hidden layers only: the output layer's units are the network's outputs.

    Args and Raises: as `layer_prox`, with the strength of `row_group_penalty`.
    """
    return _proximal(partial(_on_kernels, shrink_units), strength, learning_rate, layers)


def branch_prox(
    strength: float, learning_rate: float | Callable[[Any], Any], branches: str | Sequence[str]
) -> optax.GradientTransformation:
    """As `layer_prox`, for residual networks: `shrink_group` of what ends each branch.

    Where scale and bias at a branch's end are 0, x + branch(x) is x, and so is relu(x + branch(x))
    for x >= 0: the block drops out exactly (`models.compact`). Name the last BatchNorm of each
    branch whose shortcut is the identity:

      blocks = [name for name, projects in model.block_names.items() if not projects]
      branch_prox(1.0, schedule, [f"{name}/bn2" for name in blocks])

    Args:
      strength: r of r sum_b ||w_b||_F over the branches b; leave this penalty out of the loss.
      learning_rate: as in `layer_prox`.
      branches: path patterns of modules that hold arrays. Those of each are one group, also where
        `nn.scan` has stacked several branches in them.

    Raises:
      ValueError: as `layer_prox`.
    """
    return _proximal(shrink_group, strength, learning_rate, branches, of="branches")


def _on_kernels(shrink: Callable[[Array, Any], Array], group: list[Array], t: Any) -> list[Array]:
    return [shrink(w, t) if w.ndim >= 2 else w for w in group]


def _proximal(
    shrink: Callable[[list[Array], Any], list[Array]],
    strength: float,
    learning_rate: float | Callable[[Any], Any],
    layers: str | Sequence[str],
    of: Literal["layers", "branches"] = "layers",
) -> optax.GradientTransformation:
    """The transform whose updates lead to shrink(params + updates, strength * learning_rate)."""
    numbers = {"strength": strength}
    if not callable(learning_rate):
        numbers["learning_rate"] = learning_rate
    for name, number in numbers.items():
        if np.ndim(number) or not (number >= 0 and math.isfinite(number)):
            raise ValueError(f"{name}={number} is not a number >= 0: pass one finite number.")
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    if not patterns:
        raise ValueError(f"{of} is empty: name some, such as 'hidden1' or 'stage1_block1/bn2'.")

    def init(params: Any) -> LayerProxState:
        if jax.tree.leaves(params):  # none: `optax.tree_map_params` asks for the state's structure
            _find_groups(params, patterns, of)
        return LayerProxState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: LayerProxState, params: Any = None
    ) -> tuple[Any, LayerProxState]:
        if params is None:
            raise ValueError(
                "a proximal step needs the parameters: call tx.update(grads, state, params)."
            )
        step_size = learning_rate(state.step) if callable(learning_rate) else learning_rate
        old = jax.tree.leaves(params)
        treedef: Any = jax.tree.structure(params)
        new = treedef.flatten_up_to(updates)
        for places in _find_groups(params, patterns, of).values():
            wanted = [old[i] + new[i] for i in places]
            shrunk = shrink(wanted, strength * step_size)
            for i, aim, target in zip(places, wanted, shrunk, strict=True):
                # x + (0 - x) is exactly 0; where nothing shrinks, the update stays as it is.
                new[i] = jnp.where(aim == target, new[i], target - old[i])
        return jax.tree.unflatten(treedef, new), LayerProxState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def _find_groups(params: Any, patterns: Sequence[str], of: str) -> dict[str, list[int]]:
    """path of each module that matches -> the places of its arrays among the leaves of `params`.

    Of "layers", modules with a kernel; of "branches", any. A pattern that matches none is refused.
    """
    found: dict[str, list[int]] = {}
    leaves = leaf_paths(params)
    for i, (path, _) in enumerate(leaves):
        found.setdefault(path.rpartition("/")[0], []).append(i)
    if of == "layers":
        found = {
            layer: places
            for layer, places in found.items()
            if any(jnp.ndim(leaves[i][1]) >= 2 for i in places)
        }
    for pattern in patterns:
        if not any(matches(pattern, module) for module in found):
            raise ValueError(
                f"{of} pattern {pattern!r} matches no {'layer' if of == 'layers' else 'module'}: "
                f"the parameters have {', '.join(found) or 'none'}."
            )
    return {
        module: places
        for module, places in found.items()
        if any(matches(pattern, module) for pattern in patterns)
    }
