"""Dead channels out of a network's arrays, exactly, by a description of which axes belong together.

`models.compact` describes the models of this project, and makes the narrower model. All is computed
on the host, with constants in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax._paths import leaf_paths, replace_leaves


class Point(NamedTuple):
    """One place of a stream: layers add to it, a ReLU follows, and layers read it.

    Attributes:
      writers: paths of the layers whose outputs are added, such as ("stage1_block0/conv2",).
      readers: paths of the layers that take the result.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]


# What has one set of channels. At each point in turn, with v = 0 before the first,
#   v <- relu(v + sum of the writers' outputs).
# A plain layer's output is a stream of one point, a residual stage a stream of one for each block.
Stream = tuple[Point, ...]


class Wiring(NamedTuple):
    """How the layers of a network hang together.

    A layer is a dict with a "kernel" [..., in, out] and an optional "bias"; a reader may take each
    channel at several positions, [position * channels], as a dense layer on flattened images does.
    The network's input and its output are in no stream, and so keep their widths.

    Attributes:
      streams: each layer writes to one at most, and reads one at most.
      norms: {layer: path of the BatchNorm that follows}, in both "params" and "batch_stats".
      padded: layers whose input is padded with zeros.
      epsilon: of the BatchNorms.
    """

    streams: tuple[Stream, ...]
    norms: Mapping[str, str] = {}
    padded: frozenset[str] = frozenset()
    epsilon: float = 1e-5


Arrays = dict[str, np.ndarray]


def shrink(variables: Mapping[str, Any], masks: Any, wiring: Wiring) -> tuple[Any, Any]:
    """Variables and masks without the channels that change nothing: (variables, masks).

    A channel of a stream goes where, for each of its readers, one of these holds:

    - the reader's weights of the channel are all 0;
    - the weights that make the channel are all 0 up to there, so its value is a constant c,

        v <- relu(v + sum_w k_w),   k_w = (b_w - mean_w) scale_w / sqrt(var_w + epsilon) + beta_w

      (k_w = b_w without BatchNorm), and c = 0 or the reader can take it: c times the sum of its
      weights over taps and positions goes into its bias or, without one, out of its BatchNorm's
      running mean.

    A reader with zero padding takes no constant but 0, since c ends at the border of the image.
    Removal goes on until nothing changes, as each channel that goes may free others. A stream keeps
    one channel at least; where all could go, it is one that is read with weights of 0.

    Outputs stay the same up to rounding, with BatchNorm's running statistics.

    >>> layers = {"a": {"kernel": np.array([[1.0, 0.0]]), "bias": np.array([0.0, 2.0])},
    ...           "b": {"kernel": np.array([[1.0], [3.0]]), "bias": np.zeros(1)}}
    >>> new, _ = shrink({"params": layers}, {}, Wiring(((Point(("a",), ("b",)),),)))
    >>> new["params"]["b"]["kernel"].tolist(), new["params"]["b"]["bias"].tolist()
    ([[1.0]], [6.0])

    Args:
      variables: {"params": params} and, with BatchNorm, "batch_stats", with values.
      masks: a tree like the parameters, whose weights are already 0 where a mask is False, or a
        part of it; it is cut to the same channels.
      wiring: of these parameters.

    Raises:
      ValueError: a layer that the parameters lack, or sizes that do not fit the wiring; inside
        `jit` or `grad`, where there are no values.
    """
    arrays = {path: _on_host(leaf) for path, leaf in leaf_paths(variables)}
    _check(arrays, wiring)
    network = _Network(arrays, wiring)
    while any([network.remove_from(i) for i in range(len(wiring.streams))]):
        pass  # what went may have freed others
    network.keep_one_each()
    cuts, values = network.cuts(), network.values()
    leaves = {
        path: _like(_cut(values[path], cuts.get(path, {})), leaf)
        for path, leaf in leaf_paths(variables)
    }
    kept = {
        path: _like(_cut(_on_host(mask), cuts.get(f"params/{path}", {})), mask)
        for path, mask in leaf_paths(masks)
    }
    return replace_leaves(variables, leaves), replace_leaves(masks, kept)


class _Network:
    """The arrays of a network, and the channels of each stream that are still there."""

    def __init__(self, arrays: Arrays, wiring: Wiring) -> None:
        self.arrays, self.wiring = arrays, wiring
        self.alive = [np.ones(_width(arrays, stream), bool) for stream in wiring.streams]
        self.live: Arrays = {}  # [in, out], whether any weight between two channels is not 0
        self.gains: Arrays = {}  # [in, out], the sum of these weights
        self.shift: Arrays = {}  # [out], what constants that went add to a layer's output
        for stream, alive in zip(wiring.streams, self.alive, strict=True):
            for reader in (reader for point in stream for reader in point.readers):
                kernel = arrays[_kernel(reader)]
                by_channel = kernel.reshape(-1, alive.size, kernel.shape[-1])
                self.live[reader] = (by_channel != 0).any(0)
                self.gains[reader] = by_channel.sum(0, dtype=np.float64)
        for writer in _writers(wiring):
            kernel = arrays[_kernel(writer)]
            self.shift[writer] = np.zeros(kernel.shape[-1])
            self.live.setdefault(writer, (kernel != 0).reshape(-1, kernel.shape[-1]))
        for reader in self.gains:
            self.shift.setdefault(reader, np.zeros(self.gains[reader].shape[-1]))

    def remove_from(self, i: int) -> bool:
        """Remove the channels of one stream that can go; whether there were any."""
        removed, folded = self.alive[i].copy(), []
        value, constant = np.zeros(removed.size), np.ones(removed.size, bool)
        for point in self.wiring.streams[i]:
            for writer in point.writers:
                constant &= ~self.live[writer].any(0)
                value = value + self._constant(writer)
            value = np.maximum(value, 0)
            for reader in point.readers:
                known = constant & np.isfinite(value) & ((value == 0) | self._can_take(reader))
                removed &= known | ~self.live[reader].any(1)
                folded.append((reader, np.where(known, value, 0)))
        for reader, constants in folded:
            self.shift[reader] += constants[removed] @ self.gains[reader][removed]
            self.live[reader][removed] = False
        for writer in (writer for point in self.wiring.streams[i] for writer in point.writers):
            self.live[writer][:, removed] = False
        self.alive[i] &= ~removed
        return bool(removed.any())

    def keep_one_each(self) -> None:
        """Keep the first channel of a stream that lost all, and let nothing read it."""
        for stream, alive in zip(self.wiring.streams, self.alive, strict=True):
            if not alive.any():
                alive[0] = True
                for reader in (reader for point in stream for reader in point.readers):
                    kernel = self.arrays[_kernel(reader)].copy()
                    kernel.reshape(-1, alive.size, kernel.shape[-1])[:, 0] = 0
                    self.arrays[_kernel(reader)] = kernel

    def _constant(self, layer: str) -> np.ndarray:
        """[out], what a layer puts out after its BatchNorm where its weights are all 0."""
        value = self._array(f"params/{layer}/bias", 0) + self.shift[layer]
        if layer not in self.wiring.norms:
            return value
        norm = self.wiring.norms[layer]
        mean, variance = (self._array(f"batch_stats/{norm}/{name}", 0) for name in ("mean", "var"))
        with np.errstate(invalid="ignore", divide="ignore"):  # not finite, and then not removed
            unit = (value - mean) / np.sqrt(variance + self.wiring.epsilon)
            scale, bias = (
                self._array(f"params/{norm}/{name}", missing)
                for name, missing in (("scale", 1), ("bias", 0))
            )
            return unit * scale + bias

    def _array(self, path: str, missing: float) -> np.ndarray:
        return np.asarray(self.arrays.get(path, missing)).astype(np.float64)

    def _can_take(self, layer: str) -> bool:
        """Whether a layer can take a constant input that is not 0."""
        return layer not in self.wiring.padded and self._offset(layer) in self.arrays

    def _offset(self, layer: str) -> str:
        """The path of the array which a layer's constant goes into."""
        bias = f"params/{layer}/bias"
        if bias in self.arrays or layer not in self.wiring.norms:
            return bias
        return f"batch_stats/{self.wiring.norms[layer]}/mean"

    def values(self) -> Arrays:
        """All arrays, with the constants of what went."""
        new = dict(self.arrays)
        for layer, shift in self.shift.items():
            if shift.any():
                path = self._offset(layer)
                sign = -1 if path.startswith("batch_stats/") else 1
                old = self.arrays[path]
                new[path] = (old.astype(np.float64) + sign * shift).astype(old.dtype)
        return new

    def cuts(self) -> dict[str, dict[int, np.ndarray]]:
        """{path of an array: {axis: which of its entries stay}}."""
        cuts: dict[str, dict[int, np.ndarray]] = {}
        for stream, alive in zip(self.wiring.streams, self.alive, strict=True):
            for point in stream:
                for writer in point.writers:
                    norm = self.wiring.norms.get(writer)
                    vectors = [f"params/{writer}/bias"]
                    if norm is not None:
                        vectors += [f"params/{norm}/{name}" for name in ("scale", "bias")]
                        vectors += [f"batch_stats/{norm}/{name}" for name in ("mean", "var")]
                    for path in (_kernel(writer), *vectors):
                        cuts.setdefault(path, {})[-1] = alive
                for reader in point.readers:
                    positions = self.arrays[_kernel(reader)].shape[-2] // alive.size
                    cuts.setdefault(_kernel(reader), {})[-2] = np.tile(alive, positions)
        return cuts


def _kernel(layer: str) -> str:
    return f"params/{layer}/kernel"


def _writers(wiring: Wiring) -> list[str]:
    return [writer for stream in wiring.streams for point in stream for writer in point.writers]


def _width(arrays: Arrays, stream: Stream) -> int:
    """How many channels a stream has."""
    return arrays[_kernel(stream[0].writers[0])].shape[-1]


def _cut(array: np.ndarray, cuts: Mapping[int, np.ndarray]) -> np.ndarray:
    for axis, stay in cuts.items():
        array = np.compress(stay, array, axis=axis)
    return array


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            "which channels go depends on the weights' values, which jit and grad hide: call this "
            "outside of them."
        )
    return np.asarray(leaf)


def _like(array: np.ndarray, leaf: Any) -> Any:
    return jnp.asarray(array) if isinstance(leaf, jax.Array) else array


def _check(arrays: Arrays, wiring: Wiring) -> None:
    """Raise ValueError for a layer that is not there or has other channels than its stream."""
    for stream in wiring.streams:
        for layer in (layer for point in stream for ends in point for layer in ends):
            if _kernel(layer) not in arrays:
                raise ValueError(
                    f"the wiring names the layer {layer!r}, and the variables have no "
                    f"{_kernel(layer)}: pass the variables of the network that it describes."
                )
        width = _width(arrays, stream)
        for point in stream:
            made = [(layer, "makes", -1) for layer in point.writers]
            taken = [(layer, "takes", -2) for layer in point.readers]
            for layer, does, axis in made + taken:
                size = arrays[_kernel(layer)].shape[axis]
                if size != width and (does == "makes" or size % width):
                    raise ValueError(
                        f"{layer} {does} {size} channels, and its stream has {width}, as many as "
                        f"{stream[0].writers[0]} makes: name layers that share their channels."
                    )
