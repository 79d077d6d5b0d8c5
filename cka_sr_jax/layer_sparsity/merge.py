"""Active layers, exact merging of the inactive ones, and dropping of small negative parts.

Let h >= 0 be the input of a hidden layer with W >= 0 and b >= 0. Then h @ W + b >= 0, so the ReLU
does nothing, and the layer and the next one are a single affine map:

    relu(h @ W + b) @ V + c = h @ (W V) + (b @ V + c).

The statement without biases is the idea of Hebiri and Lederer (arXiv 2006.15604), recalled, as
their text was not read. Biases, convolutions and the bound are derived here. All is computed on the
host in float64, since the depth of the result depends on the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from cka_sr_jax.layer_sparsity.chain import (
    Affine,
    Chain,
    candidate_layers,
    check_chain,
    check_input,
    compose_in_float64,
    like,
    to_float64,
)


def active_layers(
    chain: Chain, tol: float = 0.0, nonnegative_input: bool = False
) -> tuple[int, ...]:
    """The hidden layers whose ReLU counts: those with ||neg(W_j, b_j)||_F > tol.

    On signed input the first hidden layer is active whatever its weights are.

      >>> one, minus = Affine(np.ones((1, 1)), np.zeros(1)), Affine(-np.ones((1, 1)), np.zeros(1))
      >>> active_layers((one, minus, one, one))
      (0, 1)

    Args:
      chain: with values, outside of jit.
      tol: largest norm of a negative part that counts as none, in the units of the weights.
      nonnegative_input: no input of the chain is negative (pixels in [0, 1]).

    Raises:
      ValueError: as `check_chain`, with values; tol negative or NaN.
    """
    check_chain(chain, values=True)
    if not tol >= 0:
        raise ValueError(f"tol={tol} must be a number >= 0.")
    candidates = candidate_layers(chain, nonnegative_input)
    return tuple(
        j for j in range(len(chain) - 1) if j not in candidates or _negative_norm(chain[j]) > tol
    )


def merge_layers(chain: Chain, nonnegative_input: bool = False) -> tuple[Affine, ...]:
    """The same function with every inactive layer merged into the next one.

    Merging goes on until no layer is inactive, so the depth of the result is exactly
    1 + len(active_layers(result)). This is 1 + len(active_layers(chain)), or less where an inactive
    layer below an active one cancels its negative part in the product of the two.

    The result has fewer layers, but may cost more multiply-adds: merging over a bottleneck gives a
    larger matrix, and 3x3 after 3x3 is a 5x5.

      >>> one = Affine(np.ones((1, 1)), np.zeros(1))
      >>> len(merge_layers((one, one, one, one)))
      2

    A run of layers is multiplied in float64 and rounded once.

    Args: as `active_layers`.

    Raises:
      ValueError: as `check_chain`, with values; merged weights beyond the range of their type.
    """
    check_chain(chain, values=True)
    merged: list[Affine] = []
    run: list[Affine] = []  # inactive layers, waiting for the next one
    product: Affine | None = None  # the one layer that equals them, in float64
    for j, layer in enumerate(chain):
        run.append(layer)
        product = layer if product is None else compose_in_float64(product, layer)
        rounded = _rounded(product, run)
        signed_input = not merged and not nonnegative_input
        if j == len(chain) - 1 or signed_input or _negative_norm(rounded) > 0:
            merged.append(_check_finite(rounded, run, last=j))
            run, product = [], None
    return tuple(merged)


def _rounded(product: Affine, run: Sequence[Affine]) -> Affine:
    """The product of a run of layers in their own type."""
    if len(run) == 1:
        return run[0]
    kernels, biases = zip(*run, strict=True)
    return Affine(like(product.kernel, *kernels), like(product.bias, *biases))


def _check_finite(merged: Affine, run: Sequence[Affine], last: int) -> Affine:
    for array in merged:
        if not np.isfinite(to_float64(array)).all():
            raise ValueError(
                f"layers {last + 1 - len(run)} to {last} merge into weights beyond the range of "
                f"{array.dtype}: merge a chain of float64 arrays, or scale the layers' weights."
            )
    return merged


def drop_negative_parts(
    chain: Chain,
    tol: float,
    *,
    input_norm: float = 1.0,
    inputs: ArrayLike | None = None,
    nonnegative_input: bool = False,
) -> tuple[tuple[Affine, ...], float]:
    """The chain with negative parts of norm <= tol set to 0, and a bound on the output's change.

    Each hidden layer that is not in `active_layers(chain, tol)` loses its negative parts N =
    max(-W, 0) and n = max(-b, 0), so that `merge_layers` merges it.

    The bound is derived here. Replace these layers one by one, from the last to the first. ReLU is
    1-Lipschitz, so replacing layer j changes its output by some d_j with ||d_j|| <= ||h_j N_j +
    n_j||, where h_j is its input in the old chain. The layers above have been replaced by then; let
    A_1, ..., A_m be their kernels after merging. Then

      ||new(x) - old(x)||_2 <= sum_j ||d_j A_1||_2 ||A_2||_2 ... ||A_m||_2.

    With `inputs`, the d_j are computed and the largest right side is returned; it holds for these
    inputs. Without, the bound holds for all inputs of ||x||_2 <= `input_norm`:

      ||d_j A_1||_2 <= (||N_j||_2 R_j + ||n_j||_2) ||A_1||_2,

    where R_j >= ||h_j||_2 is the smaller of two bounds: ||W_{j-1}||_2 R_{j-1} + ||max(b_{j-1},
    0)||_2, and the same over the merged new layers below j plus the change up to there. Products of
    spectral norms are loose over many active layers, above all without `inputs`. Both bounds hold
    in exact arithmetic; the rounding of a float32 network comes on top.

      >>> one = Affine(np.ones((1, 1)), np.zeros(1))
      >>> almost = Affine(np.array([[1.0], [-0.1]]), np.zeros(1))
      >>> chain = (Affine(np.ones((1, 2)), np.zeros(2)), almost, one)
      >>> new, bound = drop_negative_parts(chain, 0.2, inputs=np.array([[-1.0], [2.0]]))
      >>> len(merge_layers(new)), round(bound, 3)
      (2, 0.2)

    Args:
      chain: with values, outside of jit.
      tol: as in `active_layers`.
      input_norm: largest l2 norm of an input; unused with `inputs`.
      inputs: [n, in] or [n, h, w, in]; each image counts as one vector.
      nonnegative_input: no input of the chain is negative.

    Returns:
      The new chain, and the bound on ||new(x) - old(x)||_2.

    Raises:
      ValueError: as `check_chain`, with values; tol or input_norm negative; convolutions without
        `inputs`, since their biases count once for each position; inputs that do not fit, are
        empty, not finite, or negative with `nonnegative_input`.
    """
    if not (tol >= 0 and input_norm >= 0):
        raise ValueError(f"tol={tol} and input_norm={input_norm} must be numbers >= 0.")
    active = active_layers(chain, tol, nonnegative_input)
    new = tuple(
        layer if j in active or j == len(chain) - 1 else _positive_part(layer)
        for j, layer in enumerate(chain)
    )
    old, after = _in_float64(chain), _in_float64(new)
    if inputs is not None:
        check_input(chain, inputs)
        _check_examples(inputs, nonnegative_input)
        return new, _bound_on(old, after, to_float64(inputs))
    if chain[0].kernel.ndim == 4:
        raise ValueError(
            "the bound of a chain of convolutions depends on the size of the images: pass some as "
            "inputs=."
        )
    return new, _bound_in_ball(old, after, input_norm)


def _bound_on(old: Chain, new: Chain, x: np.ndarray) -> float:
    """The largest of sum_j ||d_j A_1|| ||A_2|| ... ||A_m|| over these inputs."""
    total = np.zeros(len(x))
    for j in range(len(old) - 1):
        h = np.maximum(_apply(old[j], x), 0)
        if _negative_norm(old[j]) > _negative_norm(new[j]):
            change = np.maximum(_apply(new[j], x), 0) - h
            first, *above = merge_layers(new[j + 1 :], nonnegative_input=True)
            change = _apply(Affine(first.kernel, 0 * first.bias), change)
            norms = np.linalg.norm(change.reshape(len(x), -1), axis=1)
            total += norms * _gain(above)
        x = h
    return float(np.max(total, initial=0))


def _bound_in_ball(old: Chain, new: Chain, input_norm: float) -> float:
    """The bound for all inputs of this norm."""
    changes: list[float] = []  # ||N_j|| R_j + ||n_j||
    size = input_norm  # R_j
    for j in range(len(old) - 1):
        negative = Affine(*(after - before for before, after in zip(old[j], new[j], strict=True)))
        changes.append(_size_after([negative], size))
        below = _size_after(merge_layers(new[: j + 1]), input_norm)
        detour = below + _summed_change(changes, new[: j + 1])
        size = min(_size_after([old[j]], size), detour)
    return _summed_change(changes, new)


def _summed_change(changes: list[float], new: Chain) -> float:
    """The change of the output of the last of the `new` layers, from that of each layer."""
    gains = []
    for j in range(len(changes)):
        above = new[j + 1 :]
        gains.append(_gain(merge_layers(above, nonnegative_input=True) if above else ()))
    return sum((gain * change for gain, change in zip(gains, changes, strict=True)), start=0.0)


def _gain(layers: Chain) -> float:
    """The largest factor by which these layers can stretch a difference."""
    return math.prod((spectral_norm(layer.kernel) for layer in layers), start=1.0)


def _size_after(layers: Chain, size: float) -> float:
    """A bound on the norm of these layers' output, with ReLUs, for inputs of norm `size`.

    relu(u + b) <= relu(u) + relu(b), so the negative part of a bias does not count.
    """
    for kernel, bias in layers:
        shift = np.maximum(to_float64(bias), 0)
        size = spectral_norm(kernel) * size + float(np.linalg.norm(shift))
    return size


def _check_examples(inputs: ArrayLike, nonnegative: bool) -> None:
    values = to_float64(inputs)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"the inputs, of shape {values.shape}, are empty or not all finite: pass examples of "
            "what the network is applied to."
        )
    if nonnegative and values.min() < 0:
        raise ValueError(
            f"an input is {values.min():g} and nonnegative_input says that none is below 0: set it "
            "to False for these inputs."
        )


def _in_float64(chain: Chain) -> list[Affine]:
    return [Affine(*map(to_float64, layer)) for layer in chain]


def _apply(layer: Affine, x: np.ndarray) -> np.ndarray:
    """One layer on the host, in float64: a convolution as a sum of its taps."""
    kernel, bias = layer
    if kernel.ndim == 2:
        return x @ kernel + bias
    rows, columns = (
        size - taps + 1 for size, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    shifted = (
        x[:, i : i + rows, j : j + columns] @ kernel[i, j] for i, j in np.ndindex(*kernel.shape[:2])
    )
    return sum(shifted, start=np.zeros(())) + bias


def spectral_norm(kernel: ArrayLike) -> float:
    """||W||_2 of a dense kernel; a bound on it for a VALID convolution on images of any size.

    A tap K_a is a matrix applied to a shifted crop, so ||K||_2 <= sum_a ||K_a||_2. With |K_a| in
    place of K_a the largest gain is that of constant images, so ||K||_2 <= ||sum_a |K_a|||_2. The
    smaller of the two is returned.

      >>> spectral_norm(np.diag([3.0, 4.0]))
      4.0
    """
    values = to_float64(kernel)
    if values.ndim == 2:
        return float(np.linalg.norm(values, 2))
    taps = values.reshape(-1, *values.shape[2:])
    by_tap = sum(np.linalg.norm(tap, 2) for tap in taps)
    return float(min(by_tap, np.linalg.norm(np.abs(taps).sum(0), 2)))


def _negative_norm(layer: Affine) -> float:
    """`negative_norm` in float64, and > 0 wherever an entry is negative, however small."""
    values = np.concatenate([to_float64(array).ravel() for array in layer])
    negative = np.minimum(values, 0)
    scale = -negative.min(initial=0)
    return float(scale * np.linalg.norm(negative / scale)) if scale else 0.0


def _positive_part(layer: Affine) -> Affine:
    return Affine(*(array.clip(0) for array in layer))
