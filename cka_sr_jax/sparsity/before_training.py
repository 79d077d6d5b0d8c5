"""Pruning before training: masks from the untrained weights, to train with `static(masks)`.

Each function ranks all weights together and keeps round(density * N) of them, or as `shuffle` only
takes each layer's count from that and puts it at random places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density
from cka_sr_jax.sparsity.masks import (
    Masks,
    Params,
    apply_masks,
    fold_in_path,
    maskable_leaves,
    maskable_shapes,
    masks_from_paths,
)
from cka_sr_jax.sparsity.selection import top_k_masks

Loss = Callable[[Params, Any], Float[Array, ""]]
Model = Callable[[Params, Array], Array]
Scores = dict[str, Float[Array, "..."]]


def snip(
    loss: Loss,
    params: Params,
    batch: Any,
    density: float,
    *,
    exclude: Sequence[str] = (),
    shuffle: Array | None = None,
) -> Masks:
    """SNIP (Lee et al. 2019): keep the largest |w dL/dw|, the loss's sensitivity to the mask.

    Args:
      loss: `(params, batch) -> scalar`.
      params: untrained; the authors score freshly drawn Xavier-normal weights.
      batch: what `loss` takes; a batch of the training data or several.
      density: share of weights kept among all that are pruned, in (0, 1].
      exclude: path patterns of parameters that stay dense, such as "head/kernel".
      shuffle: a random key: keep the layers' counts and draw the places at random, as the authors
        of random pruning do (Liu et al. 2022); None: the best places.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; outside jit, scores that
        are not finite.
    """
    check_density(density)
    scores = snip_scores(loss, params, batch, exclude=exclude)
    return _keep_best(params, scores, density, shuffle)


def grasp(
    loss: Loss,
    params: Params,
    batch: Any,
    density: float,
    *,
    exclude: Sequence[str] = (),
    shuffle: Array | None = None,
) -> Masks:
    """GraSP (Wang et al. 2020): keep the largest w * Hg, so that the gradient norm stays large.

    H is the Hessian and g the gradient of the loss over the weights that are pruned. The authors
    divide the logits by 200 inside the loss and use 10 samples of each class.

    Arguments and errors as for `snip`.
    """
    check_density(density)
    scores = grasp_scores(loss, params, batch, exclude=exclude)
    return _keep_best(params, scores, density, shuffle)


def synflow(
    model: Model,
    params: Params,
    inputs: Array,
    density: float,
    *,
    rounds: int = 100,
    exclude: Sequence[str] = (),
    shuffle: Array | None = None,
) -> Masks:
    """SynFlow (Tanaka et al. 2020): keep the largest synaptic flow, over many rounds and no data.

    Round k of n keeps round(density^(k/n) N) weights of those left, scored anew. Iterating is what
    keeps every layer alive at densities where one-shot pruning empties some.

    The flow grows with each layer and soon leaves float32's range: ResNet-32 needs float64, as the
    authors use. Under `jax.enable_x64(True)` give it float64 parameters and inputs, and a model
    that computes in float64 (Flax's `dtype`).

    Args:
      model: `(params, inputs) -> outputs`, with BatchNorm in evaluation mode.
      inputs: an array of the model's input shape (one sample is enough); only its shape and type
        count.
      rounds: n above; each is one forward and backward pass.
      params, density, exclude, shuffle: as for `snip`.

    Raises:
      ValueError: as `snip`; `rounds` below 1; a flow beyond the range of its type.
    """
    check_density(density)
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is not a number of pruning rounds: pass 1 or more.")
    shapes = maskable_shapes(params, exclude)
    size = sum(map(math.prod, shapes.values()))

    @jax.jit  # one compilation for all rounds; a scan would slow convolutions down on CPUs
    def next_round(
        masks: dict[str, Array], count: Int[Array, ""]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        masked = apply_masks(params, masks_from_paths(params, masks))
        scores = synflow_scores(model, masked, inputs, exclude=exclude)
        largest = jnp.max(jnp.stack([score.max() for score in scores.values()]))
        # To at most 1, by a power of two: scores are ranked in float32.
        _, exponent = jnp.frexp(largest)
        scores = {path: jnp.ldexp(score, -exponent) for path, score in scores.items()}
        return top_k_masks(scores, count, where=masks), largest

    masks = {path: jnp.ones(shape, bool) for path, shape in shapes.items()}
    for k in range(1, rounds + 1):
        count = max(1, round(density ** (k / rounds) * size))
        masks, largest = next_round(masks, jnp.int32(count))
        if k == 1 and not isinstance(largest, jax.core.Tracer) and not jnp.isfinite(largest):
            raise ValueError(
                f"SynFlow's scores leave the range of {largest.dtype} in this model: compute them "
                "in float64, with jax.enable_x64(True) and a model and parameters of that type."
            )
    return masks_from_paths(params, _shuffled(shuffle, masks))


def snip_scores(loss: Loss, params: Params, batch: Any, *, exclude: Sequence[str] = ()) -> Scores:
    """{path: |w dL/dw|} of the weights that are pruned."""
    grads = dict(leaf_paths(jax.grad(loss)(params, batch)))
    return {
        path: jnp.abs(_float32(weight) * _float32(grads[path]))
        for path, weight in maskable_leaves(params, exclude).items()
    }


def grasp_scores(loss: Loss, params: Params, batch: Any, *, exclude: Sequence[str] = ()) -> Scores:
    """{path: w * Hg} of the weights that are pruned; the paper's score with its sign turned."""
    weights = maskable_leaves(params, exclude)

    def loss_of(weights: Mapping[str, Array]) -> Array:
        return loss(_replace(params, weights), batch)

    gradient = jax.grad(loss_of)
    # Forward over reverse: one Hessian-vector product costs about two gradients.
    _, hessian_gradient = jax.jvp(gradient, (weights,), (gradient(weights),))
    return {path: _float32(weights[path]) * _float32(hessian_gradient[path]) for path in weights}


def synflow_scores(
    model: Model, params: Params, inputs: Array, *, exclude: Sequence[str] = ()
) -> Scores:
    """{path: w dR/dw at |w|}, R being the sum of the outputs of |params| on all-ones inputs.

    In a network of linear layers and ReLUs without bias the scores of each layer sum to R.
    """
    positive = jax.tree.map(jnp.abs, params)
    ones = jnp.ones(jnp.shape(inputs), jnp.result_type(inputs))
    flow = jax.grad(lambda positive: jnp.sum(model(positive, ones).astype(jnp.float32)))(positive)
    flows = dict(leaf_paths(flow))
    return {
        path: jnp.abs(_float32(weight) * _float32(flows[path]))
        for path, weight in maskable_leaves(positive, exclude).items()
    }


def _keep_best(params: Params, scores: Scores, density: float, shuffle: Array | None) -> Masks:
    size = sum(score.size for score in scores.values())
    for path, score in scores.items():
        if not isinstance(score, jax.core.Tracer) and not jnp.isfinite(score).all():
            raise ValueError(
                f"the scores of {path} are not finite: check that the loss of the untrained model "
                "is, and that its gradients are."
            )
    masks = top_k_masks(scores, max(1, round(density * size)))
    return masks_from_paths(params, _shuffled(shuffle, masks))


def _shuffled(key: Array | None, masks: dict[str, Array]) -> dict[str, Array]:
    if key is None:
        return masks
    return {
        path: jax.random.permutation(fold_in_path(key, path), mask.ravel()).reshape(mask.shape)
        for path, mask in masks.items()
    }


def _replace(params: Params, leaves: Mapping[str, Array]) -> Params:
    """`params` with other arrays at the named leaves."""
    paths = iter([path for path, _ in leaf_paths(params)])
    return jax.tree.map(lambda leaf: leaves.get(next(paths), leaf), params)


def _float32(array: Array) -> Array:
    """At least float32: products of bfloat16 numbers tie too often."""
    return array.astype(float32_or_wider(array.dtype))
