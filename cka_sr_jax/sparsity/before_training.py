"""Pruning before training by a score: SNIP, GraSP and SynFlow give masks for `static(masks)`.

Each ranks all weights of the untrained network together and keeps round(density * N) of them, or
takes each layer's count from that and draws the places at random (`shuffle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cka_sr_jax._dtypes import float32_or_wider
from cka_sr_jax._paths import leaf_paths, replace_leaves
from cka_sr_jax.sparsity.distributions import check_density
from cka_sr_jax.sparsity.layers import Axes, Layer, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, Params, apply_masks, masks_from_paths
from cka_sr_jax.sparsity.per_layer import count_layers
from cka_sr_jax.sparsity.random_places import layer_keys, random_mask
from cka_sr_jax.sparsity.selection import count_dtype, top_k_masks, wide_counts

Loss = Callable[[Params, Any], Float[Array, ""]]
Model = Callable[[Params, Any], Array]  # of inputs of NumPy or JAX
Scores = dict[str, Float[Array, "..."]]


def snip(
    loss: Loss,
    params: Params,
    batch: Any,
    density: float,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    shuffle: Array | None = None,
) -> Masks:
    """SNIP (Lee et al. 2019, arXiv 1810.02340): keep the largest |w dL/dw|.

    The score is the loss's sensitivity to the weight's mask.

    >>> import optax
    >>> from cka_sr_jax.sparsity import snip, sparsify, static
    >>> params = {"kernel": jnp.arange(4.0).reshape(4, 1)}
    >>> loss = lambda params, x: jnp.mean((x @ params["kernel"]) ** 2)
    >>> masks = snip(loss, params, jnp.ones((3, 4)), density=0.5)
    >>> masks["kernel"].ravel().tolist()
    [False, False, True, True]
    >>> tx = sparsify(optax.sgd(0.1), static(masks))

    Args:
      loss: `(params, batch) -> scalar`.
      params: untrained; the authors score freshly drawn Xavier-normal weights.
      batch: what `loss` takes: a batch of the training data, or several.
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      shuffle: a random key keeps each layer's count and draws the places at random, as the authors
        of random pruning do (Liu et al. 2022, arXiv 2202.02643); None keeps the best places.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; outside jit, scores that
        are not finite.
    """
    check_density(density)
    layers = finder(include, exclude, stacked, input_axes)(params)
    scores = snip_scores(loss, params, batch, layers)
    return _keep_best(params, layers, scores, density, shuffle)


def grasp(
    loss: Loss,
    params: Params,
    batch: Any,
    density: float,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    shuffle: Array | None = None,
) -> Masks:
    """GraSP (Wang et al. 2020, arXiv 2002.07376): keep the largest w * Hg.

    H is the Hessian and g the gradient of the loss over the weights that are pruned: what is kept
    is what holds the gradient's norm up. The authors divide the logits by 200 inside the loss and
    use 10 samples of each class.

    >>> from cka_sr_jax.sparsity import grasp
    >>> params = {"kernel": jnp.arange(8.0).reshape(4, 2)}
    >>> loss = lambda params, x: jnp.mean((x @ params["kernel"]) ** 2)
    >>> masks = grasp(loss, params, jnp.ones((3, 4)), density=0.5)

    Args:
      loss: `(params, batch) -> scalar`, twice differentiable.
      params: untrained.
      batch: what `loss` takes.
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      shuffle: a random key keeps each layer's count and draws the places at random, as the authors
        of random pruning do (Liu et al. 2022, arXiv 2202.02643); None keeps the best places.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; outside jit, scores that
        are not finite.
    """
    check_density(density)
    layers = finder(include, exclude, stacked, input_axes)(params)
    scores = grasp_scores(loss, params, batch, layers)
    return _keep_best(params, layers, scores, density, shuffle)


def synflow(
    model: Model,
    params: Params,
    inputs: Array,
    density: float,
    *,
    rounds: int = 100,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    shuffle: Array | None = None,
) -> Masks:
    """SynFlow (Tanaka et al. 2020, arXiv 2006.05467): keep the largest synaptic flow, without data.

    Round k of n keeps round(density^(k/n) N) of the weights that remain, scored anew by
    `synflow_scores`. The rounds keep every layer alive at densities where pruning at once would
    empty some.

    The flow grows with each layer and soon leaves float32's range. ResNet-32 needs float64, which
    the authors use: under `jax.enable_x64(True)` pass float64 parameters and inputs, and a model
    that computes in float64 (Flax's `dtype`).

    >>> from cka_sr_jax.sparsity import density, synflow
    >>> params = {"kernel": jnp.arange(8.0).reshape(4, 2)}
    >>> model = lambda params, x: x @ params["kernel"]
    >>> masks = synflow(model, params, jnp.ones((1, 4)), density=0.5, rounds=3)
    >>> float(density(masks))
    0.5

    Args:
      model: `(params, inputs) -> outputs`, with BatchNorm in evaluation mode.
      params: untrained.
      inputs: an array of the model's input shape, of which only shape and type count; one sample is
        enough.
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      rounds: n above, 1 or more; each takes one forward and one backward pass.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      shuffle: a random key keeps each layer's count and draws the places at random, as the authors
        of random pruning do (Liu et al. 2022, arXiv 2202.02643); None keeps the best places.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; `rounds` below 1; outside
        jit, a flow beyond the range of its type.
    """
    check_density(density)
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is not a number of pruning rounds: pass 1 or more.")
    layers = finder(include, exclude, stacked, input_axes)(params)
    size = sum(layer.number * layer.size for layer in layers.values())

    @jax.jit  # one compilation for all rounds; in a scan, convolutions are slow on CPUs
    def next_round(
        masks: dict[str, Array], count: Int[Array, ""]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        masked = apply_masks(params, masks_from_paths(params, masks))
        scores = synflow_scores(model, masked, inputs, layers)
        largest = jnp.max(jnp.stack([score.max() for score in scores.values()]))
        # Scaled to at most 1 by a power of two, since scores are ranked in float32.
        _, exponent = jnp.frexp(largest)
        scores = {path: jnp.ldexp(score, -exponent) for path, score in scores.items()}
        return top_k_masks(scores, count, where=masks), largest

    masks = {path: jnp.ones(layer.shape, bool) for path, layer in layers.items()}
    for k in range(1, rounds + 1):
        count = max(1, round(density ** (k / rounds) * size))
        with wide_counts(size):
            masks, largest = next_round(masks, jnp.asarray(count, count_dtype(size)))
        if k == 1 and not isinstance(largest, jax.core.Tracer) and not jnp.isfinite(largest):
            raise ValueError(
                f"SynFlow's scores leave the range of {largest.dtype} in this model: compute them "
                "in float64, with jax.enable_x64(True) and a model and parameters of that type."
            )
    return masks_from_paths(params, _shuffled(shuffle, layers, masks))


def snip_scores(loss: Loss, params: Params, batch: Any, layers: Iterable[str]) -> Scores:
    """{path: |w dL/dw|} of the layers at these paths."""
    grads, weights = dict(leaf_paths(jax.grad(loss)(params, batch))), dict(leaf_paths(params))
    return {
        path: jnp.abs(_float32(jnp.asarray(weights[path])) * _float32(grads[path]))
        for path in layers
    }


def grasp_scores(loss: Loss, params: Params, batch: Any, layers: Iterable[str]) -> Scores:
    """{path: w * Hg} of the layers at these paths: the paper's score with its sign turned."""
    leaves = dict(leaf_paths(params))
    weights = {path: leaves[path] for path in layers}

    def loss_of(weights: Mapping[str, Array]) -> Array:
        return loss(replace_leaves(params, weights), batch)

    gradient = jax.grad(loss_of)
    # Forward over reverse: one Hessian-vector product costs about two gradients.
    _, hessian_gradient = jax.jvp(gradient, (weights,), (gradient(weights),))
    return {path: _float32(weights[path]) * _float32(hessian_gradient[path]) for path in weights}


def synflow_scores(model: Model, params: Params, inputs: Array, layers: Iterable[str]) -> Scores:
    """{path: |w dR/dw| at |w|} of the layers at these paths.

    R is the sum of the outputs of |params| on inputs of ones.

    In a network of linear layers and ReLUs without bias, the scores of each layer sum to R.
    """
    positive = jax.tree.map(jnp.abs, params)
    ones = jnp.ones(jnp.shape(inputs), jnp.result_type(inputs))
    flow = jax.grad(lambda positive: jnp.sum(model(positive, ones).astype(jnp.float32)))(positive)
    flows, weights = dict(leaf_paths(flow)), dict(leaf_paths(positive))
    return {path: jnp.abs(_float32(weights[path]) * _float32(flows[path])) for path in layers}


def _keep_best(
    params: Params,
    layers: Mapping[str, Layer],
    scores: Scores,
    density: float,
    shuffle: Array | None,
) -> Masks:
    size = sum(score.size for score in scores.values())
    for path, score in scores.items():
        if not isinstance(score, jax.core.Tracer) and not jnp.isfinite(score).all():
            raise ValueError(
                f"the scores of {path} are not finite: check the loss of the untrained model and "
                "its gradients."
            )
    masks = top_k_masks(scores, max(1, round(density * size)))
    return masks_from_paths(params, _shuffled(shuffle, layers, masks))


def _shuffled(
    key: Array | None, layers: Mapping[str, Layer], masks: dict[str, Array]
) -> dict[str, Array]:
    """Masks with the counts of these at random places, where there is a key."""
    if key is None:
        return masks
    shuffled = {}
    for path, layer in layers.items():
        counts = count_layers(layer, masks[path])
        shuffled[path] = random_mask(layer, layer_keys(key, path, layer), counts)
    return shuffled


def _float32(array: Array) -> Array:
    """At least float32: products of bfloat16 numbers tie too often."""
    return array.astype(float32_or_wider(array.dtype))
