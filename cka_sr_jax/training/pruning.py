"""Pruning before training: masks from a run's untrained model and its training images.

Each function is `(untrained, options) -> masks`, `options` being those of the pruner in
`cka_sr_jax.sparsity`, with `shuffle` a bool. `methods.PRUNERS` gives them their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cka_sr_jax._dtypes import enable_x64
from cka_sr_jax.data import Labels
from cka_sr_jax.sparsity import Masks, grasp, ntt, snip, synflow
from cka_sr_jax.training.step import cross_entropy

# GraSP's authors score 10 images of each class, with logits divided by 200.
GRASP_IMAGES, GRASP_TEMPERATURE = 10, 200.0


class Untrained(NamedTuple):
    """What a pruner may look at.

    Attributes:
      model: the Linen module.
      variables: {"params", "batch_stats"}, with which training starts.
      images: `(indices) -> images`, normalized training images.
      labels: of all training images.
      batch_at: `(step) -> indices` of that step's batch.
      key: for random choices.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    images: Callable[[np.ndarray], Array]
    labels: Labels
    batch_at: Callable[[int], np.ndarray]
    key: Array


def snip_masks(untrained: Untrained, options: dict[str, Any]) -> Masks:
    """SNIP on the run's first batch."""
    return _by_loss(snip, untrained, untrained.batch_at(0), 1.0, options)


def grasp_masks(untrained: Untrained, options: dict[str, Any]) -> Masks:
    """GraSP on the first 10 training images of each class."""
    labels = untrained.labels
    classes = np.unique(labels)
    first = [np.flatnonzero(labels == label)[:GRASP_IMAGES] for label in classes]
    return _by_loss(grasp, untrained, np.concatenate(first), GRASP_TEMPERATURE, options)


def _by_loss(
    prune: Callable[..., Masks],
    untrained: Untrained,
    batch: np.ndarray,
    temperature: float,
    options: dict[str, Any],
) -> Masks:
    model, statistics = untrained.model, untrained.variables.get("batch_stats", {})

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": statistics},
            batch[0],
            train=True,
            mutable=["batch_stats", "features", "losses"],
            rngs={"dropout": untrained.key, "gumbel": untrained.key},
        )
        return cross_entropy(logits / temperature, batch[1]).mean()

    examples = untrained.images(batch), jnp.asarray(untrained.labels[batch])
    options = _with_key(untrained, options)
    return prune(jax.jit(loss), untrained.variables["params"], examples, **options)


def synflow_masks(untrained: Untrained, options: dict[str, Any]) -> Masks:
    """SynFlow on one input of ones, in float64: in a deep network float32 overflows."""
    with enable_x64(True):
        double = {name: _float64(tree) for name, tree in untrained.variables.items()}

        def flow(params: Any, inputs: Array) -> Any:
            wide = untrained.model.clone(dtype=jnp.float64)
            return wide.apply({**double, "params": params}, inputs, train=False)

        inputs = _float64(untrained.images(untrained.batch_at(0)[:1]))
        return synflow(flow, double["params"], inputs, **_with_key(untrained, options))


def ntt_masks(untrained: Untrained, options: dict[str, Any]) -> Masks:
    """NTT trains a student on the run's first `rounds` batches; training then starts anew."""
    options = dict(options)
    rounds, variables = options.pop("rounds"), untrained.variables
    statistics = variables.get("batch_stats", {})

    def outputs(params: Any, inputs: Array) -> Any:
        state = {"params": params, "batch_stats": statistics}
        return untrained.model.apply(state, inputs, train=False)

    batches = (untrained.images(untrained.batch_at(i)) for i in range(rounds))
    return ntt(outputs, variables["params"], batches, **options).masks


def _with_key(untrained: Untrained, options: dict[str, Any]) -> dict[str, Any]:
    """The options with a random key in place of `shuffle=True`."""
    rest = {name: value for name, value in options.items() if name != "shuffle"}
    return rest | ({"shuffle": untrained.key} if options.get("shuffle") else {})


def _float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)
