"""Attentive pruning: the connections that a top-down selection from the labels passes through.

Biparva and Tsotsos (2020, arXiv 2005.04559) send attention from each example's label down through a
trained network; at every layer it selects some of the connections, and what it passes through often
enough is kept. We had their abstract alone. The selection follows the first author's earlier code
for localization, from its formulas; to take its trace as a pruning score is an inference of ours.

At a layer with inputs h and weights w, an output j with a gate g_j > 0 looks at its contributions
c_i = w_ij h_i, over the taps of its receptive field in a convolution. Outputs whose contributions
sum to at most 3e-4 stop here. Else, with c sorted upwards and theta the entry at which the running
sum first exceeds 0,

    selected are the i with c_i >= theta - 2e-4; of these a dense layer keeps those of at least t,
    the first of m + 3 s, m + 2 s, m + s and m that leaves any (m and s being the mean and the
    standard deviation of the selected; the code has m / 2 and m / 5 too, which nothing reaches);
    a_ij = c_i / sum of the selected c, else 0;   gate_i += g_j a_ij;   trace_ij += a_ij.

Left out: the connected components by which the earlier code thins a convolution's selection.
Inferred: selected contributions are above 0; ReLUs pass gates of active units, BatchNorm all, max
pooling to the largest, average pooling in equal shares, a residual sum to both its branches;
weights of equal traces, as most have a trace of 0, are ranked by |w|.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.distributions import check_density
from cka_sr_jax.sparsity.layers import Axes, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks, masks_from_paths

LEAST_SUM, TOLERANCE = 3e-4, 2e-4
BATCH = 64  # examples in one call
THRESHOLDS = (3.0, 2.0, 1.0, 0.0)  # standard deviations above the mean


def attentive_scores(
    model: Any, variables: Mapping[str, Any], images: Any, labels: Any
) -> dict[str, Float[np.ndarray, "..."]]:
    """{path of a kernel: its trace, summed over examples and positions}, as the kernel is shaped.

    >>> from cka_sr_jax.models import MLP
    >>> model, x = MLP(2, (4,)), jnp.ones((8, 3))
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> scores = attentive_scores(model, variables, x, jnp.zeros(8, int))
    >>> float(scores["head/kernel"][:, 1].sum())  # nothing leads to class 1
    0.0

    Examples are taken one by one, each with some arrays of positions x kernel size in float32,
    which are sorted, so this takes far longer than a forward pass.

    Args:
      model: Linen module of Dense, Conv and BatchNorm layers, called as `model.apply(variables,
        images, train=False)`, that returns logits [b, classes]. Its activations must be ReLUs:
        others are not told from them, and pass gates by their derivative.
      variables: trained ones.
      images: [n, ...], as the model takes them.
      labels: [n] integers below the number of classes.

    Raises:
      ValueError: no examples; labels that are not as above; a layer of parameters of another kind;
        scores that are not finite.
    """
    _check_examples(model, variables, images, labels)
    traces = jax.jit(trace_function(model))
    total: dict[str, np.ndarray] = {}
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        found = traces(variables, jnp.asarray(images[part]), jnp.asarray(labels[part]))
        for path, trace in leaf_paths(found):
            if path.rpartition("/")[2] == "kernel":
                total[path] = total.get(path, 0) + np.asarray(trace, np.float64)
    for path, trace in total.items():
        if not np.isfinite(trace).all():
            raise ValueError(
                f"the trace of {path} is not finite: pass images and variables that are finite."
            )
    return {path: trace.astype(np.float32) for path, trace in total.items()}


def _check_examples(model: Any, variables: Any, images: Any, labels: Any) -> None:
    if "params" not in variables:
        raise ValueError("the variables have no 'params': pass {'params': params, ...}.")
    labels = np.asarray(labels)
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(
            f"there are {len(images)} images and labels of shape {labels.shape}: pass one label "
            "for each of one image or more."
        )
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images[:1])
    classes = logits.shape[-1]
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"the labels are {labels.dtype} from {labels.min()} to {labels.max()}: expected whole "
            f"numbers from 0 to {classes - 1}, the model's classes."
        )


def trace_function(model: Any) -> Callable[[Any, Array, Array], Any]:
    """`(variables, images, labels) -> traces`, a tree like the parameters; for `jit`.

    Raises:
      ValueError: when traced, as `attentive_scores` for its layers.
    """
    import flax.linen as nn  # half a second, which users of other rules need not wait

    def traces(variables: Any, images: Array, labels: Array) -> Any:
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def gated(params: Any) -> Array:
            with nn.intercept_methods(_select):
                logits: Any = model.apply({"params": params, **rest}, images, train=False)
            return jnp.take_along_axis(logits, labels[:, None], axis=1).sum()

        return jax.grad(gated)(variables["params"])

    return traces


def attentive(
    params: Any,
    scores: Mapping[str, Any],
    density: float,
    *,
    masks: Masks | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
) -> Masks:
    """Masks that keep the weights of the highest scores, a share `density` of each layer's.

    Traces count positions, which dense layers have one of and convolutions many, so that they rank
    the weights of one layer alone. Of equal scores the larger |w| is kept.

    >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    >>> masks = attentive(params, {"kernel": np.array([[0.0, 0.0], [5.0, 0.0]])}, 0.5)
    >>> masks["kernel"].tolist()
    [[False, False], [True, True]]

    Args:
      params: of the network that was scored, with values.
      scores: from `attentive_scores`.
      density: share of all weights kept, in (0, 1]: 1 - sparsity.
      masks: those so far, which hold the new ones; None: all weights.
      include, exclude, stacked, input_axes: as in `snip`.

    Raises:
      ValueError: density outside (0, 1]; a pattern that matches nothing; a layer without scores, or
        with scores of another shape; scores or weights that are not finite.
    """
    check_density(density)
    weights, before, after = dict(leaf_paths(params)), dict(leaf_paths(masks)), {}
    for path, layer in finder(include, exclude, stacked, input_axes)(params).items():
        found = np.shape(scores[path]) if path in scores else "nothing"
        if found != np.shape(weights[path]):
            raise ValueError(
                f"the scores have {found} for {path}, of shape "
                f"{np.shape(weights[path])}: score the model of these parameters, or exclude it."
            )
        score, size = np.asarray(scores[path]), np.abs(np.asarray(weights[path]))
        if not (np.isfinite(score).all() and np.isfinite(size).all()):
            raise ValueError(f"{path} has a score or a weight that is not finite, so none is best.")
        there = np.broadcast_to(np.asarray(before.get(path, True)), score.shape)
        each = [a.reshape(*score.shape[: layer.stack], -1) for a in (score, size, there)]
        order = np.lexsort((-each[1], -each[0], ~each[2]), axis=-1)  # by the last, then the others
        kept = max(1, round(density * order.shape[-1]))
        mask = np.zeros(order.shape, bool)
        np.put_along_axis(mask, order[..., :kept], True, axis=-1)
        after[path] = jnp.asarray((mask & each[2]).reshape(score.shape))
    return masks_from_paths(params, after)


def _select(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """A layer's own output, whose gradient is the selection."""
    import flax.linen as nn

    layer, output = context.module, call(*args, **kwargs)
    if context.method_name != "__call__":
        return output
    arrays = layer.variables.get("params", {})
    if isinstance(layer, nn.BatchNorm):
        return _passed(args[0], output)
    if isinstance(layer, nn.Dense):
        return _attended(_dense_fields, True, args[0], arrays["kernel"], output)
    if isinstance(layer, nn.Conv) and _is_plain(layer, arrays["kernel"]):
        fields = partial(_patches, layer.kernel_size, layer.strides, layer.padding)
        return _attended(fields, False, args[0], arrays["kernel"], output)
    if layer.path and any(not isinstance(leaf, Mapping) for leaf in arrays.values()):
        raise ValueError(
            f"the selection does not pass the {type(layer).__name__} {'/'.join(layer.path)}: it "
            "knows Dense, plain Conv over two axes, and BatchNorm."
        )
    return output


def _is_plain(layer: Any, kernel: Any) -> bool:
    """Whether `_patches` sees what the convolution sees."""
    dilations = (layer.kernel_dilation, layer.input_dilation)
    dilated = any(np.any(np.asarray(d) != 1) for d in dilations if d is not None)
    named = layer.padding not in ("SAME", "VALID") if isinstance(layer.padding, str) else False
    return kernel.ndim == 4 and layer.feature_group_count == 1 and not dilated and not named


def _dense_fields(x: Array) -> Array:
    """[b, i] or [b, p, i] as [b, positions, i]."""
    return x.reshape(len(x), -1, x.shape[-1])


def _patches(size: Any, strides: Any, padding: Any, x: Array) -> Array:
    """[b, positions, kh * kw * channels], in the order of the kernel."""
    strides = np.broadcast_to(1 if strides is None else strides, 2)
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    elif not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    patches = jax.lax.conv_general_dilated_patches(
        x, size, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    channels_last = patches.reshape(len(x), -1, x.shape[-1], int(np.prod(size)))
    return channels_last.swapaxes(2, 3).reshape(*channels_last.shape[:2], -1)


@jax.custom_vjp
def _passed(x: Array, output: Array) -> Array:
    """The output, whose gate goes to x as it is."""
    return output


_passed.defvjp(
    lambda x, output: (output, (x, output)),
    lambda saved, gates: (gates.astype(saved[0].dtype), jnp.zeros_like(saved[1])),
)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attended(fields: Any, thin: bool, x: Array, kernel: Array, output: Array) -> Array:
    """The output, whose gradient is the selection."""
    return output


def _attended_forward(fields: Any, thin: bool, x: Array, kernel: Array, output: Array) -> Any:
    return output, (x, kernel, output)


def _attended_backward(fields: Any, thin: bool, saved: Any, gates: Array) -> Any:
    x, kernel, output = saved
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    seen, to_input = jax.vjp(fields, x.astype(jnp.float32))

    def one(example: tuple[Array, Array]) -> tuple[Array, Array]:
        values, gate = example  # [p, i] and [p, o]
        shares = jax.vmap(partial(_shares, thin=thin), in_axes=(0, None))(values, weights)
        shares = jnp.where((gate > 0)[:, None], shares, 0)
        return jnp.einsum("po,pio->pi", gate, shares), shares.sum(0)

    gates = gates.reshape(len(x), -1, gates.shape[-1]).astype(jnp.float32)
    below, traces = jax.lax.map(one, (seen, gates))
    (gate_in,) = to_input(below)
    trace = traces.sum(0).reshape(kernel.shape)
    return gate_in.astype(x.dtype), trace.astype(kernel.dtype), jnp.zeros_like(output)


_attended.defvjp(_attended_forward, _attended_backward)


def _shares(values: Float[Array, " i"], weights: Float[Array, "i o"], thin: bool) -> Array:
    """[i, o], a_ij of one position."""
    c = values[:, None] * weights
    rising = jnp.sort(c, axis=0)
    passed = jnp.cumsum(rising, axis=0) > 0
    theta = jnp.take_along_axis(rising, jnp.argmax(passed, axis=0)[None], axis=0)
    selected = (c >= theta - TOLERANCE) & (c > 0)
    if thin:
        selected = _largest(c, selected)
    kept = jnp.where(selected & (c.sum(0) > LEAST_SUM)[None], c, 0)
    total = kept.sum(0, keepdims=True)
    return kept / jnp.where(total > 0, total, 1)


def _largest(c: Array, selected: Array) -> Array:
    """Of the selected of each output, those of at least the first threshold that leaves any."""
    count = jnp.maximum(selected.sum(0, keepdims=True), 1).astype(c.dtype)
    mean = jnp.where(selected, c, 0).sum(0, keepdims=True) / count
    deviation = jnp.sqrt(jnp.where(selected, (c - mean) ** 2, 0).sum(0, keepdims=True) / count)
    result = selected
    for times in reversed(THRESHOLDS):  # the first that leaves any comes last
        above = selected & (c >= mean + times * deviation)
        result = jnp.where(above.any(0, keepdims=True), above, result)
    return result
