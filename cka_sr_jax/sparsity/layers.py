"""What a layer is: which parameters are pruned, and which of their axes count what.

Every rule, pruner and report takes its layers from `layers_of`, so `include`, `exclude`, `stacked`
and `input_axes` mean the same everywhere. Long because the axes of several libraries are told apart
here; `naming` tells their names apart.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cka_sr_jax._paths import leaf_paths, matches
from cka_sr_jax.sparsity.naming import is_norm, is_other, is_weight, name_of, parent_of, words_of

ATTENTION = ("query", "key", "value")

Patterns = str | Sequence[str]
Axes = Mapping[str, int]


class Layer(NamedTuple):
    """How a parameter array is a layer, or a stack of layers.

    Attributes:
      shape: of the array.
      stack: number of leading axes that count layers, as from `nn.scan`; 0 for a single layer.
      taps: axes of a convolution's window. These and the next two are axes of one layer, which
        lacks the stack's axes.
      inputs: axes of the inputs.
      outputs: axes of the outputs.
    """

    shape: tuple[int, ...]
    stack: int
    taps: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def number(self) -> int:
        """How many layers the array holds."""
        return math.prod(self.shape[: self.stack])

    @property
    def size(self) -> int:
        """Weights of one layer."""
        return math.prod(self.shape[self.stack :])

    @property
    def fan_in(self) -> tuple[int, ...]:
        """Axes of one layer over which an output unit sums: the taps and the inputs."""
        return self.taps + self.inputs

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one layer as a matrix [in, out] or a convolution [*taps, in, out].

        Several input or output axes, as attention has for its heads, count as one.
        """
        one = self.shape[self.stack :]
        taps = tuple(one[axis] for axis in self.taps)
        return (*taps, *(math.prod(one[axis] for axis in axes) for axes in self[3:]))

    def __str__(self) -> str:
        *taps, inputs, outputs = self.dims
        one = f"matrix {inputs} x {outputs}"
        if taps:
            one = f"convolution {' x '.join(map(str, taps))}, {inputs} to {outputs} channels"
        return f"{self.number} layers: {one}" if self.stack else one


def layers_of(
    params: Any,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> dict[str, Layer]:
    """{path: Layer} of the parameters that are pruned.

    By default these are the kernels: leaves of rank 2 or more that are called `kernel` (Flax), `w`
    or `weight` (Haiku, Equinox, plain code). In a tree without any such leaf they are the leaves of
    rank 2 or more whose name does not say that they are a bias, a scale, an embedding, a position
    or a token. All others stay dense.

    The last axis is the output and the one before it the input; axes before these are a
    convolution's window. Attention differs, and is recognized: `query`, `key` and `value` kernels
    [in, heads, features] have two output axes, `out` beside them [heads, features, out] has two
    input axes. A bias of several axes, as `nn.DenseGeneral` makes, shows the output axes of the
    kernel beside it. Equinox puts the outputs first.

    >>> params = {"scan": {"kernel": jnp.ones((8, 64, 256)), "bias": jnp.ones((8, 256))}}
    >>> for path, layer in layers_of(params, stacked={"scan": 1}).items():
    ...     print(path, "is", layer)
    scan/kernel is 8 layers: matrix 64 x 256

    Args:
      params: pytree of arrays, or of shapes (`jax.ShapeDtypeStruct`).
      include: path patterns (`sparsity.matches`); given, only what they match is pruned. A pattern
        that ends in a leaf's name prunes that leaf whatever it is called, as "embedding" does; any
        other selects among the kernels, as "decoder" and "mlp_*" do.
      exclude: path patterns of parameters that stay dense, such as "head".
      stacked: {path pattern: number of leading axes that count layers}, for parameters that
        `nn.scan`, `nn.vmap` or `nnx.vmap` stacked; where several patterns match, the largest
        number holds. Every rule then treats each layer of the stack
        as a parameter of its own.
      input_axes: {path pattern: number of input axes}, for kernels [inputs..., outputs...] of rank
        3 or more that are neither convolutions nor attention, counted after the stack's axes.

    Raises:
      ValueError: no parameter is left to prune; a pattern that matches nothing; axes that a
        parameter does not have; a kernel that looks stacked and is not declared so; two parameters
        of one path.
    """
    include, exclude = _patterns("include", include), _patterns("exclude", exclude)
    leaves = leaf_paths(params)
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves}
    if len(shapes) < len(leaves):
        (twice, _), *_ = collections.Counter(path for path, _ in leaves).most_common(1)
        raise ValueError(
            f"two parameters have the path {twice}, since a key has a slash in it: rename the key."
        )
    stacked = {} if stacked is None else stacked
    _check_axes("stacked", stacked, shapes)
    stack = _stacks(stacked, shapes)
    found = _select(include, shapes, {path: len(shapes[path]) - stack[path] for path in shapes})
    for pattern in exclude:
        excluded = [path for path in found if matches(pattern, path)]
        if not excluded:
            raise ValueError(
                f"exclude pattern {pattern!r} matches no parameter that would be pruned: use a "
                f"path such as {', '.join(found) or 'none'}."
            )
        found = [path for path in found if path not in excluded]
    if not found:
        raise ValueError(
            "no parameter is left to prune: pass the model's parameters, with a leaf of rank 2 or "
            "more called kernel, w or weight or named in include, and exclude fewer of them."
        )
    return describe(params, found, stacked=stacked, input_axes=input_axes)


def describe(
    params: Any,
    paths: Sequence[str],
    *,
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> dict[str, Layer]:
    """{path: Layer} of these parameters; arguments and errors as for `layers_of`."""
    stacked = {} if stacked is None else stacked
    input_axes = {} if input_axes is None else input_axes
    shapes = {path: jnp.shape(leaf) for path, leaf in leaf_paths(params)}
    _check_axes("stacked", stacked, shapes)
    _check_axes("input_axes", input_axes, {path: shapes[path] for path in paths})
    attributes = _attributes(params)
    stacks = _stacks(stacked, shapes)
    return {
        path: _layer(path, shapes, stacks, _first_match(input_axes, path), path in attributes)
        for path in paths
    }


def _stacks(stacked: Axes, shapes: Mapping[str, Any]) -> dict[str, int]:
    """How many of a parameter's axes count layers, {path: number}: the most that is declared."""
    return {
        path: max(
            (count for pattern, count in stacked.items() if matches(pattern, path)), default=0
        )
        for path in shapes
    }


Finder = Callable[[Any], dict[str, Layer]]  # params -> layers


def finder(
    include: Patterns, exclude: Patterns, stacked: Axes | None, input_axes: Axes | None
) -> Finder:
    """`layers_of` with these options."""
    return partial(
        layers_of, include=include, exclude=exclude, stacked=stacked, input_axes=input_axes
    )


def _select(include: Sequence[str], shapes: Mapping[str, Any], ranks: Mapping[str, int]) -> list:
    """The paths that are pruned, before `exclude`."""
    matrices = [path for path in shapes if ranks[path] >= 2 and math.prod(shapes[path]) > 0]
    kernels = [path for path in matrices if is_weight(path)]
    if not kernels:
        kernels = [path for path in matrices if not is_other(path)]
    if not include:
        return kernels
    found: set[str] = set()
    for pattern in include:
        named = [path for path in matrices if _names_leaf(pattern, path)]
        new = named or [path for path in kernels if matches(pattern, path)]
        if not new:
            raise ValueError(
                f"include pattern {pattern!r} matches no parameter of rank 2 or more: use a path "
                f"such as {', '.join(kernels or matrices) or 'none'}."
            )
        found.update(new)
    return [path for path in matrices if path in found]


def _layer(
    path: str,
    shapes: Mapping[str, Any],
    stacks: Mapping[str, int],
    input_axes: int | None,
    attribute: bool,
) -> Layer:
    shape, stack = shapes[path], stacks[path]
    rank = len(shape) - stack
    inputs = input_axes
    equinox = attribute and words_of(name_of(path))[0] == "weight"
    if inputs is not None and inputs >= rank:
        raise ValueError(
            f"input_axes gives {path} {inputs} input axes, which leaves no output axis in its "
            f"shape {shape}: pass 1 to {rank - 1}."
        )
    if inputs is None and rank >= 3 and not (equinox and _has_conv_bias(path, shapes, stack)):
        _check_not_stacked(path, shapes, stacks)
        inputs = _inputs_by_bias(path, shape[stack:], shapes, stack)
        inputs = inputs or _attention_inputs(path, rank, shapes)
    axes = tuple(range(rank))
    if inputs is not None:
        return Layer(shape, stack, (), axes[:inputs], axes[inputs:])
    if equinox:  # [out, in, *taps]
        return Layer(shape, stack, axes[2:], axes[1:2], axes[:1])
    return Layer(shape, stack, axes[:-2], axes[-2:-1], axes[-1:])


def _has_conv_bias(path: str, shapes: Mapping[str, Any], stack: int) -> bool:
    """Whether the bias beside an Equinox weight is [out, 1, ...], a convolution's."""
    bias, shape = _bias(path, shapes)[stack:], shapes[path][stack:]
    return bias == (shape[0], *(1,) * (len(shape) - 2))


def _check_not_stacked(path: str, shapes: Mapping[str, Any], stacks: Mapping[str, int]) -> None:
    """Raise ValueError for a kernel that holds more layers than its declared stack has.

    A bias shows it, or attention, or the norms of as large a stack.
    """
    stack = stacks[path]
    shape, bias = shapes[path][stack:], _bias(path, shapes)[stack:]
    by_bias = len(bias) > 1 and bias[0] == shape[0] and bias != shape[-len(bias) :]
    norms = [other for other in shapes if is_norm(other) and stacks[other] == stack]
    by_norm = any(len(scale := shapes[o][stack:]) > 1 and scale[0] == shape[0] for o in norms)
    by_attention = _in_attention(path, shapes) and len(shape) > 3
    if by_bias or by_norm or by_attention:
        top = path.split("/")[0]
        if all(each[: stack + 1] == shapes[path][: stack + 1] for each in shapes.values()):
            top = "*"
        raise ValueError(
            f"{path} of shape {shapes[path]} looks like {shape[0]} layers in one array, as nn.scan "
            f"and nn.vmap make: say so with stacked={{{top!r}: {stack + 1}}}, or give its number "
            f"of input axes with input_axes={{{path!r}: {len(shape) - 1}}}."
        )


def _inputs_by_bias(
    path: str, shape: tuple[int, ...], shapes: Mapping[str, Any], stack: int
) -> int | None:
    """How many input axes a kernel has if its bias shows several output axes, else None."""
    units = _bias(path, shapes)[stack:]
    several = len(units) > 1 and shape[-len(units) :] == units
    return len(shape) - len(units) if several else None


def _attention_inputs(path: str, rank: int, shapes: Mapping[str, Any]) -> int | None:
    layer = path.split("/")[-2:-1]
    if rank != 3 or not _in_attention(path, shapes):
        return None
    return 2 if layer == ["out"] else 1


def _in_attention(path: str, shapes: Mapping[str, Any]) -> bool:
    """Whether a kernel is a query, key or value of attention, or the `out` beside all three."""
    *around, layer, name = ("", *path.split("/"))
    siblings = ["/".join((*around, part, name)).removeprefix("/") for part in ATTENTION]
    return layer in ATTENTION or (layer == "out" and all(path in shapes for path in siblings))


def _bias(path: str, shapes: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the bias beside a kernel, whatever it is called; () if there is none."""
    number = re.search(r"\d*$", name_of(path))
    names = [f"{name}{number[0] if number else ''}" for name in ("bias", "b", "offset")]
    around = "/".join((*path.split("/")[:-1], ""))
    return next((shapes[around + name] for name in names if around + name in shapes), ())


def _attributes(params: Any) -> set[str]:
    """The paths of leaves that are attributes of an object, as in an Equinox module.

    The array inside an `nnx.Variable` is its attribute `value`, which the path does not name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path for path, _ in leaf_paths(params)]
    return {
        path
        for path, (keys, _) in zip(paths, leaves, strict=True)
        if keys
        and isinstance(keys[-1], jax.tree_util.GetAttrKey)
        and keys[-1].name == name_of(path)
    }


def _check_axes(option: str, axes: Axes, shapes: Mapping[str, Any]) -> None:
    if not isinstance(axes, Mapping):
        raise ValueError(
            f"{option}={axes!r} is not a mapping from path patterns to numbers of axes: pass for "
            f"example {option}={{'blocks': 1}}."
        )
    for pattern, count in axes.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise ValueError(
                f"{option}={{{pattern!r}: {count!r}}} is not a number of axes: pass 1 or more."
            )
        found = [path for path in shapes if matches(pattern, path)]
        if not found:
            raise ValueError(
                f"{option} pattern {pattern!r} matches no parameter: use a path such as "
                f"{', '.join(shapes) or 'none'}."
            )
        for path in found:
            if len(shapes[path]) < count:
                raise ValueError(
                    f"{option}={{{pattern!r}: {count}}} does not fit {path} of shape "
                    f"{shapes[path]}: use a pattern that matches other parameters alone."
                )


def _patterns(option: str, patterns: Patterns) -> tuple[str, ...]:
    found = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(found, Collection) or not all(isinstance(each, str) for each in found):
        raise ValueError(
            f"{option}={patterns!r} is neither a path pattern nor a tuple of them: pass for "
            f"example {option}='head' or {option}=('embed', 'head')."
        )
    return tuple(found)


def _first_match(axes: Axes, path: str) -> int | None:
    return next((count for pattern, count in axes.items() if matches(pattern, path)), None)


def _names_leaf(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path up to its end by the leaf's name, not by a bare `*`."""
    last = pattern.rsplit("/", 1)[-1]
    return (
        last.strip("*") != "" and matches(pattern, path) and not matches(pattern, parent_of(path))
    )
