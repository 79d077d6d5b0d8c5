"""Structured sparsity: N of every M consecutive weights, and whole output channels.

Long because each function documents its arguments in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, finder, layers_of
from cka_sr_jax.sparsity.masks import Masks, Params, map_masked, masks_from_paths
from cka_sr_jax.sparsity.per_layer import over_stack
from cka_sr_jax.sparsity.reparametrization import Reparametrization, part
from cka_sr_jax.sparsity.rule import Rule, check_prunes, map_layers
from cka_sr_jax.sparsity.schedules import check_steps, cubic_counts, periodic
from cka_sr_jax.sparsity.selection import top_k_mask
from cka_sr_jax.sparsity.starts import start_full
from cka_sr_jax.sparsity.tied import Tied, channel_squares, check_tied, mask_tied


def n_m_masks(
    params: Params,
    n: int,
    m: int,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Masks:
    """Masks that keep the n largest |w| of every m consecutive weights along the input axis.

    Sparse tensor cores run the pattern 2:4. Each group keeps exactly n weights: of equal ones those
    of the lowest index, and NaN last. These masks stay fixed while training; see `sr_ste` for masks
    that move.

    >>> import optax
    >>> from cka_sr_jax.sparsity import n_m_masks, sparsify, static
    >>> masks = n_m_masks({"kernel": jnp.arange(8.0).reshape(8, 1)}, n=2, m=4)
    >>> masks["kernel"].ravel().astype(int).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    >>> tx = sparsify(optax.sgd(0.1), static(masks))

    Args:
      params: pytree.
      n: weights kept in each group, 0 < n < m.
      m: size of a group; it divides the input axis of every layer.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "stem".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.

    Raises:
      ValueError: n and m that cannot work; an input axis that m does not divide; a pattern that
        matches nothing.
    """
    _check_n_m(n, m)
    layers = finder(include, exclude, stacked, input_axes)(params)
    _check_input_axes(layers, m)
    leaves, masks = dict(leaf_paths(params)), {}
    for path, layer in layers.items():
        of_layer = partial(_n_m_mask, layer, n, m)
        masks[path] = _wherever(over_stack(of_layer, layer.stack), leaves[path])
    return masks_from_paths(params, masks)


def sr_ste(
    n: int = 2,
    m: int = 4,
    *,
    decay: float = 2e-4,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Reparametrization:
    """N:M sparsity learned from scratch with SR-STE (Zhou et al. 2021, arXiv 2102.04010).

      w_eff = mask(w) w,   gradient of w: dL/dw_eff + decay (1 - mask(w)) w

    The mask is that of `n_m_masks`, computed anew at each step. The gradient passes straight
    through it to all weights, so a pruned weight may come back. The decay, which `learn_masks`
    adds, shrinks the pruned weights, so that masks flip less. decay=0 is the plain straight-through
    estimator.

    >>> import optax
    >>> from cka_sr_jax.sparsity import learn_masks, sr_ste
    >>> method = sr_ste(n=2, m=4)
    >>> trained = method.init({"kernel": jnp.arange(8.0).reshape(8, 1)})
    >>> method.weights(trained)["kernel"].ravel().tolist()
    [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0]
    >>> tx = learn_masks(optax.sgd(0.1), method)

    Args:
      n: weights kept in each group, 0 < n < m.
      m: size of a group; it divides the input axis of every layer.
      decay: of the pruned weights, 0 or more; the default is the authors' (recalled, not verified).
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "stem".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.

    Raises:
      ValueError: n, m or decay that cannot work; at `init`, an input axis that m does not divide or
        a pattern that matches nothing.
    """
    _check_n_m(n, m)
    if not 0 <= decay < float("inf"):
        raise ValueError(f"decay={decay} is not a number >= 0: pass one, for example 2e-4.")

    which: dict[str, Any] = {
        "include": include,
        "exclude": exclude,
        "stacked": stacked,
        "input_axes": input_axes,
    }

    def weight_masks(trained: Params) -> Masks:
        return n_m_masks(part(trained, "weights"), n, m, **which)

    def init(params: Params) -> Params:
        _check_input_axes(layers_of(params, **which), m)
        return {"weights": params}

    def weights(trained: Params) -> Params:
        def straight_through(mask: Array, weight: Any) -> Array:  # of NumPy or JAX
            # w + (0 - w) is exactly 0 and w + 0 exactly w, both with slope 1.
            return weight + jax.lax.stop_gradient(jnp.where(mask, 0, -weight))

        return map_masked(straight_through, weight_masks(trained), part(trained, "weights"))

    def regularize(grads: Params, trained: Params) -> Params:
        def shrink(mask: Array, grad: Any, weight: Any) -> Array:
            return jnp.where(mask, grad, grad + decay * weight)

        masks, values = weight_masks(trained), part(trained, "weights")
        return {**grads, "weights": map_masked(shrink, masks, part(grads, "weights"), values)}

    return Reparametrization(
        init, weights, lambda trained: {"weights": weight_masks(trained)}, regularize
    )


def channel_masks(
    params: Params,
    density: float,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    tied: Sequence[Tied] = (),
) -> Masks:
    """Masks that keep whole output channels: in each layer those with the largest kernels.

    Each layer keeps round(density * channels) channels, at least one, by the L2 norm of the
    kernel's slice. Exclude the classifier: its channels are the classes. Only kernels are masked,
    so a pruned channel still outputs its bias, or what a normalization after it adds, until the
    model is cut down.

    Layers that `tied` names keep the same channels: those whose slices of all `outputs` have the
    largest norm together. The weights of `inputs` that take a pruned channel are pruned too, so
    nothing reads what it still outputs and `models.compact` can remove it.

    >>> from cka_sr_jax.sparsity import channel_masks
    >>> channel_masks({"kernel": jnp.array([[1.0, 3.0, 2.0, 0.0]])}, density=0.5)["kernel"].tolist()
    [[False, True, True, False]]
    >>> from cka_sr_jax.sparsity import Tied
    >>> params = {"a": jnp.array([[3.0, 0.0]]), "b": jnp.array([[1.0, 2.0]])}
    >>> masks = channel_masks(params, 0.5, tied=[Tied(("a", "b"))])
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([[True, False]], [[True, False]])

    Args:
      params: pytree.
      density: share of channels kept in each layer, in (0, 1].
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      tied: groups of kernels that share their channels.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; as `tied.check_tied`.
    """
    check_density(density)
    layers = finder(include, exclude, stacked, input_axes)(params)
    check_tied(tied, params, layers)
    leaves, masks = dict(leaf_paths(params)), {}
    grouped = {path for group in tied for path in group.outputs}
    for path, layer in layers.items():
        if path in grouped:
            masks[path] = jnp.ones_like(leaves[path], bool)
            continue
        largest = partial(_largest_channels, layer, count=_final_count(layer, density))
        masks[path] = _wherever(over_stack(largest, layer.stack), leaves[path])
    final = partial(_final_count, density=density)
    return masks_from_paths(params, mask_tied(tied, layers, leaves, masks, final))


def channels(
    density: float,
    *,
    end_step: int,
    start_step: int = 0,
    update_every: int = 100,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
    tied: Sequence[Tied] = (),
) -> Rule:
    """Gradual pruning of whole output channels, along the cubic schedule of `gmp`.

    Starts dense. The update at step t keeps, of the C channels of a layer, the

      n_t = n_f + (C - n_f) (1 - (t - start_step) / (end_step - start_step))^3,   n_f = density C,

    with the largest norms; `channel_masks` says what that means for the classifier, for biases and
    for `tied` layers. Pruned channels never return.

    >>> import optax
    >>> from cka_sr_jax.sparsity import channels, sparsify
    >>> tx = sparsify(optax.sgd(0.1), channels(density=0.5, end_step=7500, exclude="head"))

    Args:
      density: share of channels kept in each layer, in (0, 1].
      start_step: first step, counted from 0, that may prune.
      end_step: step of the final density; no later step changes the masks. Three quarters of the
        run is a sensible value: 7500 of 10,000 steps. It must come before the run's last step, so
        that the pruned network is trained.
      update_every: steps from one pruning to the next.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of full ones, as `static` takes them.
      tied: groups of kernels that share their channels.

    Raises:
      ValueError: a density or step that cannot work; at `init`, a pattern that matches nothing, or
        `tied` that does not fit (`tied.check_tied`).
    """
    check_density(density)
    steps = {"start_step": start_step, "end_step": end_step, "update_every": update_every}
    check_steps(**steps, one_shot=True)

    find = finder(include, exclude, stacked, input_axes)
    grouped = {path for group in tied for path in group.outputs}
    first = start_full(find, start)

    def init(key: Array, params: Params) -> Masks:
        check_tied(tied, params, find(params))
        return first(key, params)

    def update(
        key: Array, step: Int[Array, ""], masks: Masks, params: Params, grads: Params
    ) -> Masks:
        def count(layer: Layer) -> Int[Array, ""]:
            return cubic_counts(layer.dims[-1], _final_count(layer, density), **steps)(step)

        def at_layer(layer: Layer, key: Array, mask: Array, param: Array, grad: Array) -> Array:
            return _largest_channels(layer, param, count(layer), jnp.any(mask, axis=layer.fan_in))

        layers, before = find(params), dict(leaf_paths(masks))
        check_prunes(layers, masks)
        alone = {path: mask for path, mask in before.items() if path not in grouped}
        found = map_layers(
            at_layer,
            key,
            {path: layers[path] for path in alone},
            masks_from_paths(params, alone),
            params,
            grads,
        )
        found = mask_tied(tied, layers, dict(leaf_paths(params)), before | found, count)
        return masks_from_paths(params, found)

    return Rule(init, update, periodic(update_every, end_step, start_step))


def _wherever(function: Callable[[Any], Array], kernel: Any) -> Array:
    """The function's mask of a kernel and with its sharding, however explicit axes shard it."""
    sharding = jax.typeof(kernel).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(kernel)
    return jax.sharding.auto_axes(function, out_sharding=sharding)(kernel)


def _n_m_mask(
    layer: Layer, n: int, m: int, kernel: Float[Array | np.ndarray, "..."]
) -> Bool[Array, "..."]:
    order = (*layer.fan_in, *layer.outputs)
    ordered = jnp.transpose(kernel, order)
    size = jnp.abs(ordered).reshape(-1, m, layer.dims[-1])
    size = jnp.where(jnp.isnan(size), -1, size)
    # A weight's rank in its group is the number of weights that beat it. Jitted, XLA fuses the
    # comparisons into the sum: no memory, and a hundredth of the time of a sort (m = 4, CPU).
    own, other = size[:, :, None, :], size[:, None, :, :]
    earlier = jnp.tri(m, k=-1, dtype=bool)[None, :, :, None]
    rank = jnp.sum((other > own) | ((other == own) & earlier), axis=2, dtype=jnp.int32)
    return jnp.transpose(
        (rank < n).reshape(ordered.shape), [order.index(axis) for axis in range(len(order))]
    )


def _largest_channels(
    layer: Layer,
    kernel: Float[Array, "..."],
    count: int | Int[Array, ""],
    where: Bool[Array, "..."] | None = None,
) -> Bool[Array, "..."]:
    """Of the channels in `where` the `count` with the largest norm, as a mask of the kernel."""
    chosen = top_k_mask(channel_squares(layer, kernel), count, where=where)
    # Like the kernel, so that the mask has its sharding.
    return jnp.expand_dims(chosen, layer.fan_in) & jnp.ones_like(kernel, bool)


def _final_count(layer: Layer, density: float) -> int:
    return max(1, round(density * layer.dims[-1]))


def _check_n_m(n: int, m: int) -> None:
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n < m):
        raise ValueError(
            f"n={n} of every m={m} weights cannot be kept: pass whole numbers with 0 < n < m, for "
            "example 2 and 4."
        )


def _check_input_axes(layers: Mapping[str, Layer], m: int) -> None:
    for path, layer in layers.items():
        if layer.dims[-2] % m:
            raise ValueError(
                f"{path} has {layer.dims[-2]} inputs, which m={m} does not divide: take an m that "
                f"does, or keep this layer dense with {path!r} in exclude."
            )
