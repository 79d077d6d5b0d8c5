"""Narrower and shallower models: pruned channels, dead units and dead blocks really removed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.accounting import (
    LayerRow,
    Point,
    Wiring,
    kernel_positions,
    layer_rows,
    shrink,
    text_table,
    total_row,
)
from cka_sr_jax.accounting.compact import Stream
from cka_sr_jax.models.layers import batch_norm
from cka_sr_jax.models.lenet import LeNet5
from cka_sr_jax.models.mlp import MLP
from cka_sr_jax.models.resnet import ResNet
from cka_sr_jax.models.vgg import VGG
from cka_sr_jax.sparsity import Tied, apply_masks


class Compacted(NamedTuple):
    """A smaller model, and what it has and costs; `print` shows it as a table.

    Attributes:
      model: of the same class as the old one, with the widths and blocks that are left.
      variables: its "params" and, with BatchNorm, "batch_stats".
      masks: those of the old model, cut to the same channels.
      before: the rows of the old model's arrays (`accounting.layer_rows`).
      after: those of the new one.
    """

    model: nn.Module
    variables: dict[str, Any]
    masks: Any
    before: list[LayerRow]
    after: list[LayerRow]

    def __str__(self) -> str:
        left = {row.path: row for row in self.after}
        kernels = [
            (old.path, *(_size(row) for row in (old, new)), *_flops(old, new))
            for old, new in ((row, left.get(row.path)) for row in self.before)
            if len(old.shape) > 1
        ]
        totals = total_row(self.before), total_row(self.after)
        all_of_them = ("all parameters", *(f"{row.parameters:,}" for row in totals))
        header = ("parameter", "before", "after", "FLOPs before", "FLOPs after")
        return text_table([header, *kernels, (*all_of_them, *_flops(*totals))], left=1)


def compact(model: nn.Module, variables: Mapping[str, Any], masks: Any, x: Any) -> Compacted:
    """The model without the units and channels that change nothing under these masks.

    A unit goes where nothing reads it (all its outgoing weights are 0). It also goes where it is
    constant (all its incoming weights are 0) and what reads it can take the constant;
    `accounting.shrink` has the formula. In a ResNet the layers that add to one stream lose a
    channel together, once all of them can. A block that adds its input drops out where its branch
    adds exactly 0, as after `layer_sparsity.branch_prox`: its last BatchNorm has scale and bias 0,
    or a constant of 0. In evaluation mode (`train=False`) the outputs stay the same up to rounding.

    A pruned channel whose bias or BatchNorm puts out more than 0 stays if a convolution with zero
    padding reads it: its constant ends at the border of the image. `tied_channels` gives the rule
    `channels` and `channel_masks` the groups whose pruned channels can always go.

    >>> from cka_sr_jax.sparsity import channel_masks
    >>> model, x = MLP(2, (4,)), jnp.ones((1, 3))
    >>> params = model.init(jax.random.key(0), x, train=False)["params"]
    >>> masks = channel_masks(params, 0.5, exclude="head")  # or get_masks of an optimizer's state
    >>> small = compact(model, {"params": params}, masks, x)
    >>> small.model.apply(small.variables, x, train=False).shape
    (1, 2)
    >>> print(small)
    parameter       before  after  FLOPs before  FLOPs after
    hidden0/kernel     3x4    3x2            24           12
    head/kernel        4x2    2x2            16            8
    all parameters      26     14            40           20

    Args:
      model: an MLP, LeNet5, VGG or ResNet.
      variables: {"params": ...} and, with BatchNorm, "batch_stats", with values.
      masks: a tree like the parameters, with `optax.MaskedNode()` where an array stays dense.
      x: input [n, ...] for the FLOPs, an array or a `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: another kind of model; variables of another model; masks of other parameters.
    """
    wiring = _wiring(model)
    variables = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    _check_variables(model, variables, x)
    masked = {**variables, "params": apply_masks(variables["params"], masks)}
    before = layer_rows(variables["params"], masks, kernel_positions(model, variables, x))
    new, new_masks = shrink(masked, masks, wiring)
    while dead := _dead_blocks(model, new):
        new = {kind: _without(tree, dead) for kind, tree in new.items()}
        new_masks = _without(new_masks, dead)
        small = model.clone(**_widths(model, new["params"]))
        new, new_masks = shrink(new, new_masks, _wiring(small))  # what read the block alone
    small = model
    if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, variables):
        small = model.clone(**_widths(model, new["params"]))
    after = layer_rows(new["params"], new_masks, kernel_positions(small, new, x))
    return Compacted(small, new, new_masks, before, after)


def tied_channels(model: nn.Module) -> tuple[Tied, ...]:
    """The kernels of a model that share channels, for the rule `channels` and `channel_masks`.

    Each group has the kernels whose outputs are one layer's channels or, in a ResNet, a stage's,
    and the kernels that take them. Pruned with these groups, channels can be removed by `compact`.

    >>> tied_channels(MLP(2, (4,)))
    (Tied(outputs=('hidden0/kernel',), inputs=('head/kernel',)),)

    Args:
      model: an MLP, LeNet5, VGG or ResNet.

    Raises:
      ValueError: another kind of model.
    """
    return tuple(
        Tied(
            tuple(f"{layer}/kernel" for point in stream for layer in point.writers),
            tuple(f"{layer}/kernel" for point in stream for layer in point.readers),
        )
        for stream in _wiring(model).streams
    )


def _wiring(model: nn.Module) -> Wiring:
    epsilon = batch_norm.keywords["epsilon"]
    if isinstance(model, MLP):
        return Wiring(_chain([*(f"hidden{i}" for i in range(len(model.hidden))), "head"]))
    if isinstance(model, LeNet5):  # the one layer with padding reads the image
        return Wiring(_chain(["conv1", "conv2", "dense1", "dense2", "head"]))
    if isinstance(model, VGG):
        norms = {f"{block}/conv": f"{block}/bn" for block in model.block_names}
        return Wiring(_chain([*norms, "head"]), norms, frozenset(norms), epsilon)
    if isinstance(model, ResNet):
        return _residual(model, epsilon)
    raise ValueError(
        f"the wiring of a {type(model).__name__} is not known here: pass an MLP, LeNet5, VGG or "
        "ResNet, or describe your model as an accounting.Wiring and call accounting.shrink."
    )


def _chain(layers: Sequence[str]) -> tuple[Stream, ...]:
    """The streams of layers of which each reads the one before it."""
    return tuple((Point((one,), (two,)),) for one, two in itertools.pairwise(layers))


def _residual(model: ResNet, epsilon: float) -> Wiring:
    number = 3 if model.bottleneck else 2
    norms, padded = {"stem": "stem_bn"}, set()
    streams: list[Stream] = []
    stream: Stream = ()  # of the current stage
    writers: tuple[str, ...] = ("stem",)
    for block, projects in model.block_names.items():
        layers = [f"{block}/conv{i}" for i in range(1, number + 1)]
        norms |= {layer: f"{block}/bn{i}" for i, layer in enumerate(layers, start=1)}
        padded |= {layers[1]} if model.bottleneck else {*layers}  # the 3x3 convolutions
        shortcut = (f"{block}/shortcut_conv",) if projects else ()
        norms |= {layer: f"{block}/shortcut_bn" for layer in shortcut}
        stream = (*stream, Point(writers, (layers[0], *shortcut)))
        if projects:
            streams.append(stream)
            stream = ()
        streams += _chain(layers)
        writers = (layers[-1], *shortcut)
    streams.append((*stream, Point(writers, ("head",))))
    return Wiring(tuple(streams), norms, frozenset(padded), epsilon)


def _widths(model: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a model that says its widths, as these parameters have them."""
    shapes = {path: jnp.shape(leaf) for path, leaf in leaf_paths(params)}

    def width(layer: str) -> int:
        return shapes[f"{layer}/kernel"][-1]

    if isinstance(model, MLP):
        return {"hidden": tuple(width(f"hidden{i}") for i in range(len(model.hidden)))}
    if isinstance(model, LeNet5):
        return {"widths": tuple(map(width, ("conv1", "conv2", "dense1", "dense2")))}
    if isinstance(model, VGG):
        return {"widths": tuple(width(f"{block}/conv") for block in model.block_names)}
    assert isinstance(model, ResNet)
    convolutions = range(1, 4 if model.bottleneck else 3)
    blocks = [
        tuple(width(f"{block}/conv{i}") for i in convolutions) if block in params else ()
        for block in model.all_block_names
    ]
    return {"widths": ((width("stem"),), *blocks)}


def _dead_blocks(model: nn.Module, variables: Mapping[str, Any]) -> set[str]:
    """The blocks of a ResNet that add their input, and to it exactly 0."""
    if not isinstance(model, ResNet):
        return set()
    last = 3 if model.bottleneck else 2
    epsilon = batch_norm.keywords["epsilon"]

    def is_dead(block: str) -> bool:
        layers, stats = variables["params"][block], variables["batch_stats"][block][f"bn{last}"]
        kernel = np.asarray(layers[f"conv{last}"]["kernel"])
        scale, bias, mean, variance = (
            np.asarray(array, np.float64)
            for array in (
                *(layers[f"bn{last}"][k] for k in ("scale", "bias")),
                stats["mean"],
                stats["var"],
            )
        )
        silent = (scale == 0) | ~kernel.any(axis=(0, 1, 2))
        constant = np.where(scale == 0, 0, -mean / np.sqrt(variance + epsilon) * scale) + bias
        return bool(np.all(silent & (constant == 0)))

    there = [name for name, projects in model.block_names.items() if not projects]
    return {name for name in there if name in variables["params"] and is_dead(name)}


def _without(tree: Any, modules: set[str]) -> Any:
    """The tree without these modules, which are at its top."""
    if not isinstance(tree, Mapping):
        return tree
    return {name: below for name, below in tree.items() if name not in modules}


def _check_variables(model: nn.Module, variables: Mapping[str, Any], x: Any) -> None:
    """Raise ValueError unless these are the variables that the model would make."""
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape), train=False))
    expected = {path: leaf.shape for path, leaf in leaf_paths(made)}
    found = {path: jnp.shape(leaf) for path, leaf in leaf_paths(variables)}
    for path in (*expected, *found):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"the variables have {_shape_text(found, path)} at {path} and the "
                f"{type(model).__name__} {_shape_text(expected, path)}: pass the model and the "
                "variables that belong together, {'params': params} and, with BatchNorm, "
                "'batch_stats', and an x of the images' size."
            )


def _shape_text(shapes: Mapping[str, tuple[int, ...]], path: str) -> str:
    return f"an array {shapes[path]}" if path in shapes else "nothing"


def _size(row: LayerRow | None) -> str:
    return "x".join(map(str, row.shape)) if row else "none"


def _flops(old: LayerRow, new: LayerRow | None) -> tuple[str, str]:
    return f"{old.flops_dense:,}", f"{new.flops_dense if new else 0:,}"
