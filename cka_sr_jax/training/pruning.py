"""Pruning before training, as a config names it: masks from the untrained model and some images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax.sparsity import Masks, grasp, ntt, snip, synflow
from cka_sr_jax.training.optimizer import rule_options
from cka_sr_jax.training.step import cross_entropy

PRUNERS: dict[str, Callable[..., Any]] = {
    "grasp": grasp,
    "ntt": ntt,
    "snip": snip,
    "synflow": synflow,
}

# GraSP's authors score 10 images of each class, with logits divided by 200.
GRASP_IMAGES, GRASP_TEMPERATURE = 10, 200.0


def prune_before_training(
    config: ConfigDict,
    model: nn.Module,
    variables: dict[str, Any],
    images: Callable[[np.ndarray], Array],
    labels: np.ndarray,
    batch_at: Callable[[int], np.ndarray],
    key: Array,
) -> Masks:
    """The masks of a run's `config.sparsity` whose rule is in PRUNERS.

    SNIP scores the run's first batch, GraSP the first 10 training images of each class, SynFlow one
    input of ones, and NTT trains its student on the run's first `config.rounds` batches. The
    weights are those that training starts from, with NTT too, whose own are left aside.

    Args:
      config: a run's `config.sparsity`.
      variables: {"params", "batch_stats"} of the untrained model.
      images: indices -> normalized training images.
      labels: of all training images.
      batch_at: step -> the indices of that step's batch.
      key: for `config.shuffle`.

    Raises:
      ValueError: a field set that the method does not have, or one that it cannot work with.
    """
    prune = PRUNERS[config.rule]
    options = rule_options(config, pruner_options(config.rule))
    if options.pop("shuffle", False):
        options["shuffle"] = key
    params, statistics = variables["params"], variables.get("batch_stats", {})

    def outputs(params: Any, inputs: Array) -> Any:
        return model.apply({"params": params, "batch_stats": statistics}, inputs, train=False)

    if config.rule == "synflow":
        with jax.enable_x64(True):  # the flow through a deep network leaves float32's range
            double = {name: _float64(tree) for name, tree in variables.items()}

            def flow(params: Any, inputs: Array) -> Any:
                wide = model.clone(dtype=jnp.float64)
                return wide.apply({**double, "params": params}, inputs, train=False)

            inputs = _float64(images(batch_at(0)[:1]))
            return synflow(flow, double["params"], inputs, **options)
    if config.rule == "ntt":
        rounds = options.pop("rounds", 0)
        if rounds < 1:
            raise ValueError(
                f"sparsity.rounds={rounds or None} is no number of batches for NTT to train on: "
                "set for example 2000."
            )
        return ntt(outputs, params, (images(batch_at(i)) for i in range(rounds)), **options).masks

    batch = batch_at(0)
    temperature = 1.0
    if config.rule == "grasp":
        batch = _first_of_each_class(labels, GRASP_IMAGES)
        temperature = GRASP_TEMPERATURE

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": statistics},
            batch[0],
            train=True,
            mutable=["batch_stats", "features"],
        )
        return cross_entropy(logits / temperature, batch[1]).mean()

    return prune(jax.jit(loss), params, (images(batch), jnp.asarray(labels[batch])), **options)


def pruner_options(name: str) -> set[str]:
    """The fields of `config.sparsity` that this method takes."""
    inputs = {"batch", "batches", "inputs", "loss", "model", "params"}
    options = set(inspect.signature(PRUNERS[name]).parameters) - inputs
    return options | {"rounds"} if name == "ntt" else options


def _float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def _first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)])
