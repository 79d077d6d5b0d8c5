"""Channels that several layers share, as on a residual stream, and masks that prune them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.layers import Layer, describe
from cka_sr_jax.sparsity.masks import Params
from cka_sr_jax.sparsity.selection import top_k_mask


class Tied(NamedTuple):
    """Channels that stand or fall together, by the kernels which make and take them.

    On a residual stream all blocks add to the same channels, so a channel can only be removed from
    all of them. `models.tied_channels` gives these for a model of this project.

    Attributes:
      outputs: paths of the kernels whose outputs are these channels, such as
        ("stem/kernel", "block0/conv2/kernel").
      inputs: paths of the kernels that take them. A dense layer on flattened images takes each
        channel once for each position.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()


def check_tied(tied: Sequence[Tied], params: Params, pruned: Mapping[str, Layer]) -> None:
    """Check that parameters have these kernels, and that their axes fit together.

    Args:
      pruned: the layers that a rule prunes, from `layers_of`.

    Raises:
      ValueError: a path that the parameters lack; a kernel that makes, or takes, two groups'
        channels; a stack of layers or a kernel of several output axes; sizes that differ.
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in leaf_paths(params)}
    for end in ("outputs", "inputs"):
        paths = [path for group in tied for path in getattr(group, end)]
        for path in paths:
            if path not in shapes:
                raise ValueError(
                    f"tied names {path!r}, which is no parameter: use paths such as "
                    f"{', '.join(shapes)}."
                )
            if paths.count(path) > 1:
                raise ValueError(
                    f"tied names {path} twice in {end}: put all layers that share its channels "
                    "in one group."
                )
    for group in tied:
        if not group.outputs:
            raise ValueError(
                f"tied has a group without outputs, {group}: name the kernels that make its "
                "channels."
            )
        layers = describe(params, [*group.outputs, *group.inputs])
        number = layers[group.outputs[0]].dims[-1]
        for path, layer in layers.items():
            stack = pruned[path].stack if path in pruned else 0
            if stack or len(layer.inputs) != 1 or len(layer.outputs) != 1:
                raise ValueError(
                    f"tied names {path}, a stack of layers or a kernel of several input or output "
                    "axes: leave it out, and the kernels that share its channels."
                )
            makes = path not in group.outputs or layer.dims[-1] == number
            takes = path not in group.inputs or layer.dims[-2] % number == 0
            if not (makes and takes):
                raise ValueError(
                    f"{path} is {layer} and tied to the {number} channels of {group.outputs[0]}: "
                    "name kernels that have the same channels."
                )


def channel_squares(layer: Layer, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """The squared L2 norm of each output channel's slice of a kernel."""
    size = jnp.abs(kernel).astype(jnp.float32)  # abs first, for complex weights
    return jnp.sum(jnp.square(size), axis=layer.fan_in)


def mask_tied(
    tied: Sequence[Tied],
    layers: Mapping[str, Layer],
    kernels: Mapping[str, Any],
    masks: Mapping[str, Bool[Array, "..."]],
    count: Callable[[Layer], int | Int[Array, ""]],
) -> dict[str, Array]:
    """These masks with each group's channels pruned: where they are made, and where taken.

    A group keeps the channels whose slices of all `outputs` have the largest norm together. A
    kernel that no mask is given for stays dense, and its slices do not count.

    Args:
      tied: groups that `check_tied` has passed.
      layers: {path: layer} of the kernels that are pruned.
      kernels: {path: array}, at least of those.
      masks: {path: mask}: the channels that are alive, and for kernels in no group's `outputs`
        what they keep.
      count: (one of a group's layers) -> how many channels the group keeps.
    """
    chosen, new = [], dict(masks)
    for group in tied:
        outputs = [path for path in group.outputs if path in masks]
        if not outputs:
            continue
        columns = [jnp.any(masks[path], axis=layers[path].fan_in) for path in outputs]
        squares = [channel_squares(layers[path], kernels[path]) for path in outputs]
        alive = jnp.any(jnp.stack(columns), axis=0)
        number = count(layers[outputs[0]])
        keep = top_k_mask(jnp.sum(jnp.stack(squares), axis=0), number, where=alive)
        chosen.append((group, keep))
        for path in outputs:
            channels = jnp.expand_dims(keep, layers[path].fan_in)
            new[path] = channels & jnp.ones_like(masks[path])
    for group, keep in chosen:
        for path in (path for path in group.inputs if path in masks):
            layer = layers[path]
            inputs = jnp.tile(keep, layer.dims[-2] // keep.size)  # flattened: channels are last
            others = (*layer.taps, *layer.outputs)
            new[path] = new[path] & jnp.expand_dims(inputs, others)
    return new
