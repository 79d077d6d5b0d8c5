"""Pruning before training by neural tangent transfer (NTT), without labels.

A masked student is trained until its outputs and its neural tangent kernel are those of the
untrained dense network, its teacher. Its masks and weights are where the real training starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.before_training import Model
from cka_sr_jax.sparsity.distributions import check_density, counts_of
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, Params, apply_masks, masks_from_paths
from cka_sr_jax.sparsity.per_layer import over_stack
from cka_sr_jax.sparsity.rule import Distributed
from cka_sr_jax.sparsity.selection import top_k_mask


class Transferred(NamedTuple):
    """What `ntt` returns.

    Attributes:
      params: the student's parameters, 0 where pruned; the authors train on from these.
      masks: for `static(masks)`.
    """

    params: Params
    masks: Masks


def ntt(
    model: Model,
    params: Params,
    batches: Iterable[Array | np.ndarray],
    density: float,
    *,
    learning_rate: float = 5e-4,
    kernel_weight: float = 1e-3,
    l2: float = 1e-5,
    update_every: int = 100,
    distribution: Distributed = "uniform",
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Transferred:
    """Neural tangent transfer (NTT; Liu & Zenke 2020, arXiv 2006.08228).

    The teacher is the network at `params`. The student starts there with the largest weights of
    each layer kept, and each batch is one step of Adam on `transfer_loss`. Every `update_every`
    steps the masks are drawn anew: the largest |w| of each layer, pruned weights included. A pruned
    weight gets no gradient (no straight-through estimate) and, but for Adam's momentum, keeps its
    value; it comes back when kept weights have shrunk below it. The last `update_every` steps or
    more have fixed masks.

    A step costs about four times `tangent_kernel`: the student's with gradient, and the teacher's.
    Each is about b k / 4 forward passes of the batch. For LeNet-300-100 on two CPU cores that is
    0.23 s at b = 64 and 0.09 s at b = 32; convolutions are far slower (LeNet-5: 12 s at b = 64).

    >>> import optax
    >>> from cka_sr_jax.sparsity import ntt, sparsify, static
    >>> params = {"kernel": jnp.arange(8.0).reshape(4, 2)}
    >>> model = lambda params, x: x @ params["kernel"]
    >>> transferred = ntt(model, params, [jnp.ones((2, 4))] * 3, density=0.5)
    >>> tx = sparsify(optax.sgd(0.1), static(transferred.masks))

    Args:
      model: `(params, inputs) -> outputs [b, k]`, each output a function of its own input, so with
        BatchNorm in evaluation mode.
      params: untrained.
      batches: input arrays [b, ...] with b even, one for each step (the authors: 20 epochs at 64).
        Up to `update_every` of them are held at a time; each new shape compiles anew.
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      learning_rate: of Adam.
      kernel_weight: as for `transfer_loss`.
      l2: as for `transfer_loss`; the authors take 1e-4 for LeNet-300-100.
      update_every: steps from one draw of the masks to the next.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities; or a function
        `({path: shape}, density) -> {path: density}`.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head"; NTT
        trains them too.
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.

    Raises:
      ValueError: density outside (0, 1]; `update_every` below 1; no batches; a batch without two
        halves of equal size; a model whose outputs are not [b, k]; an unknown distribution or
        pattern.
    """
    check_density(density)
    if update_every < 1:
        raise ValueError(f"update_every={update_every} is not a number of steps: pass 1 or more.")
    layers = finder(include, exclude, stacked, input_axes)(params)
    counts = counts_of(layers, density, distribution)
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def step(
        student: Params, state: optax.OptState, masks: Masks, teacher: Params, inputs: Array
    ) -> tuple[Params, optax.OptState]:
        grads = jax.grad(transfer_loss, argnums=1)(
            model, student, masks, teacher, inputs, density, kernel_weight=kernel_weight, l2=l2
        )
        with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam needs
            updates, state = optimizer.update(grads, state)
        return optax.apply_updates(student, updates), state

    @jax.jit
    def draw(student: Params) -> Masks:
        return _largest_weights(student, layers, counts)

    student, state, masks = params, optimizer.init(params), None
    steps = iter(batches)
    # Masks are drawn only for a full block, so that they have their `update_every` steps.
    while block := list(itertools.islice(steps, update_every)):
        if masks is None or len(block) == update_every:
            masks = draw(student)
        for inputs in block:
            student, state = step(student, state, masks, params, jnp.asarray(inputs))
    if masks is None:
        raise ValueError("there are no batches to train on: pass one array of inputs per step.")
    return Transferred(apply_masks(student, masks), masks)


def transfer_loss(
    model: Model,
    student: Params,
    masks: Masks,
    teacher: Params,
    inputs: Float[Array | np.ndarray, "b ..."],
    density: float | Float[Array, ""],
    *,
    kernel_weight: float = 1e-3,
    l2: float = 1e-5,
) -> Float[Array, ""]:
    """kernel_weight mean (K_s - K_t)^2 + mean (f_s - f_t)^2 + l2 / density ||w_s||^2.

    K is the tangent kernel between the two halves of the batch and f the outputs for all of it,
    both of the network at w_t (teacher) or at m * w_s (student, m its masks). K_s counts the
    gradients of pruned weights too, as in the authors' code. The norm is over the kept weights of
    pruned layers.

    Args:
      model: `(params, inputs) -> outputs [b, k]`.
      student: weights before masking.
      masks: the student's.
      teacher: of the student's structure.
      inputs: b even; the first half is x1 and the second x2.
      density: of the masks.
      kernel_weight: weight of the first term.
      l2: weight of the last term.

    Raises:
      ValueError: a batch without two halves of equal size; outputs that are not [b, k].
    """
    samples = len(inputs)
    if samples < 2 or samples % 2:
        raise ValueError(
            f"a batch of {samples} inputs has no two halves of equal size: pass an even number, "
            "and drop or fill the last batch."
        )
    x1, x2 = inputs[: samples // 2], inputs[samples // 2 :]
    sparse = apply_masks(student, masks)
    kernels = tangent_kernel(model, sparse, x1, x2) - tangent_kernel(model, teacher, x1, x2)
    outputs = _float32(model(sparse, inputs)) - _float32(model(teacher, inputs))
    weights = dict(leaf_paths(sparse))
    norm = sum(jnp.sum(_float32(weights[path]) ** 2) for path, _ in leaf_paths(masks))
    return kernel_weight * jnp.mean(kernels**2) + jnp.mean(outputs**2) + l2 / density * norm


def tangent_kernel(
    model: Model,
    params: Params,
    x1: Float[Array | np.ndarray, "m ..."],
    x2: Float[Array | np.ndarray, "n ..."],
) -> Float[Array, "m n k k"]:
    """The empirical neural tangent kernel K[i, j] = J(x1_i) J(x2_j)^T (Jacot et al. 2018).

    J(x) is the Jacobian of the outputs at x, of shape [k, parameters], over all leaves of `params`.
    For each sample of x2 its k gradients (k backward passes of one sample) are pushed forward
    through x1 (k forward passes of m samples). So k gradients are held at a time, and under
    `jax.grad` all n k.

    Args:
      model: `(params, inputs) -> outputs [b, k]`, each output a function of its own input.

    Raises:
      ValueError: a model whose outputs are not [b, k].
    """
    outputs, push = jax.linearize(lambda params: model(params, x1), params)
    if outputs.ndim != 2:
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}: a tangent kernel needs [b, k], one "
            "row per input."
        )

    def against_x1(x: Float[Array, "..."]) -> Float[Array, "k m k"]:
        gradients = jax.jacrev(lambda params: model(params, x[None])[0])(params)
        return jax.vmap(push)(gradients)

    # One sample at a time: for LeNet-300-100 three to four times faster on CPUs than all at once.
    return _float32(jax.lax.map(against_x1, x2)).transpose(2, 0, 3, 1)


def _float32(array: Array) -> Array:
    """At least float32, so that sums of bfloat16 squares keep their digits."""
    return array.astype(float32_or_wider(array.dtype))


def _largest_weights(
    params: Params, layers: Mapping[str, Layer], counts: Mapping[str, Any]
) -> Masks:
    """Masks with exactly these many weights of each layer, the largest by |w|."""
    weights = dict(leaf_paths(params))
    masks = {
        path: over_stack(top_k_mask, layer.stack)(jnp.abs(weights[path]), counts[path])
        for path, layer in layers.items()
    }
    return masks_from_paths(params, masks)
