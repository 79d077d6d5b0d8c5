"""One training step and one evaluation step, as pure functions of one device's data.

A loss says what is minimized, `make_train_step` turns it into a step, and `parallel.map_devices`
runs that on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax.sparsity import apply_masks, get_masks, sparse_init
from cka_sr_jax.training.accumulation import accumulated_value_and_grad
from cka_sr_jax.training.penalty import Penalty

Metrics = dict[str, Float[Array, ""]]

MODEL_KEYS = 1_684_300_900
SMALL = 2**16  # weights; arrays of fewer are tested together


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; the masks are inside `opt_state`."""

    step: Any  # int32; one a device where the state is replicated
    params: Any
    batch_stats: Any
    opt_state: Any


# `(params, batch_stats, batch, step, axis_name) -> (loss, (metrics, new batch_stats))`
Loss = Callable[[Any, Any, Any, Int[Array, ""], str | None], tuple[Array, tuple[Metrics, Any]]]


def create_state(
    variables: Any,
    tx: optax.GradientTransformationExtraArgs,
    start: Callable[[Any, Any], Any] = apply_masks,
) -> TrainState:
    """The state of step 0: parameters already pruned, statistics, the optimizer's state.

    Args:
      variables: {"params", "batch_stats"} of `model.init`.
      tx: from `sparsify`.
      start: `(params, masks) -> params`, such as `rescale_kept`.

    Raises:
      ValueError: as `sparse_init`.
    """
    _, opt_state = sparse_init(tx, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start(variables["params"], get_masks(opt_state)),
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
    )


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """-sum_c t_c log softmax(logits)_c, t the one-hot label mixed with `smoothing` / classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def classification_loss(
    model: nn.Module,
    penalty: Penalty | None = None,
    label_smoothing: float = 0.0,
    weights: Callable[[Any], Any] = lambda params: params,
    seed: int | Array = 0,
) -> Loss:
    """Mean cross-entropy + beta * penalty(features), for `make_train_step`.

    The batch is {"image": [b, h, w, c] floats, "label": [b] integers}. The metrics are scalars:
    loss, task_loss, accuracy, and penalty, its value before beta (NaN in steps that leave it out).
    What the model sows into "losses" is added to the loss; the metric model_loss is its sum.

    Args:
      model: Linen module called as `model.apply(variables, images, train=True)` that sows its
        features; see `cka_sr_jax.models`. It is given the keys "dropout" and "gumbel", new ones in
        each step and on each device; the parts of an accumulated batch share them.
      weights: `(trained) -> params`, for methods that train a tree of their own.
      seed: of these keys.
    """

    def task(logits: Array, labels: Array) -> tuple[Array, Metrics]:
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return cross_entropy(logits, labels, label_smoothing).mean(), {"accuracy": accuracy}

    return penalized_loss(model, task, penalty, weights, seed)


def penalized_loss(
    model: nn.Module,
    task: Callable[[Array, Array], tuple[Array, Metrics]],
    penalty: Penalty | None = None,
    weights: Callable[[Any], Any] = lambda params: params,
    seed: int | Array = 0,
) -> Loss:
    """`task(outputs, labels)` + beta * penalty(features), as `classification_loss` in all else.

    Args:
      task: `(outputs, labels) -> (scalar loss, metrics)`.
    """

    def loss(
        params: Any,
        batch_stats: Any,
        batch: dict[str, Array],
        step: Int[Array, ""],
        axis_name: str | None,
    ) -> tuple[Array, tuple[Metrics, Any]]:
        outputs, updated = model.apply(
            {"params": weights(params), "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats", "features", "losses"],
            rngs=_keys(seed, step, axis_name),
        )
        task_loss, metrics = task(outputs, batch["label"])
        metrics = {**metrics, "loss": task_loss, "task_loss": task_loss}
        if own := jax.tree.leaves(updated.get("losses", {})):
            metrics["model_loss"] = sum((jnp.sum(part) for part in own), start=jnp.zeros(()))
            metrics["loss"] = metrics["loss"] + metrics["model_loss"]
        if penalty is not None and not penalty.is_off:
            term, metrics["penalty"] = penalty.term(updated.get("features", {}), step, axis_name)
            metrics["loss"] = metrics["loss"] + term
        return metrics["loss"], (metrics, updated.get("batch_stats", {}))

    return loss


def _keys(seed: int | Array, step: Array, axis_name: str | None) -> dict[str, Array]:
    """Keys for the model's own random numbers; unused ones are not in the compiled program."""
    # A stream of their own, beside those of the masks and of the data.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), MODEL_KEYS), step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    return dict(zip(("dropout", "gumbel"), jax.random.split(key), strict=True))


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformationExtraArgs,
    *,
    skip_not_finite: bool = False,
    accumulate: int = 1,
    may_change: bool = True,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step `(state, batch, axis_name="batch") -> (state, metrics)` of one device.

    Gradients, metrics and BatchNorm statistics are averaged over the axis, so the step belongs
    inside `jax.pmap`, `jax.shard_map` or `jax.vmap` with that axis name; with `axis_name=None` it
    is one device alone.

      step = make_train_step(classification_loss(model, Penalty(value, beta=1e-4)), tx)
      state, metrics = jax.pmap(step, axis_name="batch")(state, batch)

    Args:
      loss: `(params, batch_stats, batch, step, axis_name) -> (loss, (metrics, batch_stats))`.
      tx: optimizer, usually from `sparsify`.
      skip_not_finite: leave everything but the step's number as it is where the loss, a gradient or
        what the step would make of the parameters and statistics is not finite. "finite" in the
        metrics, 1 or 0, says either way whether they are.
      accumulate: parts of each device's batch, which the step takes one after the other, so that
        activations need memory for one part alone. Gradients and metrics are averaged over the
        parts. Each part is to the model and the penalty what a batch is: BatchNorm normalizes by
        the part's own statistics, and its running ones go on from part to part.
      may_change: False for a step that leaves the masks as they are; see `sparsify`.

    Raises:
      ValueError: `accumulate` below 1. The step raises it where a batch does not divide.
    """
    value_and_grad = accumulated_value_and_grad(loss, accumulate)
    update = tx.update
    if not may_change:
        update = partial(optax.with_extra_args_support(tx).update, may_change=False)

    def train_step(
        state: TrainState, batch: Any, axis_name: str | None = "batch"
    ) -> tuple[TrainState, Metrics]:
        (value, (metrics, batch_stats)), grads = value_and_grad(
            state.params, state.batch_stats, batch, state.step, axis_name
        )
        if axis_name is not None:
            value, grads, metrics, batch_stats = jax.lax.pmean(
                (value, grads, metrics, batch_stats), axis_name
            )
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, batch_stats, opt_state)
        # An optimizer may hide an infinite gradient, and make infinite weights of finite ones.
        finite = _all_finite((value, grads, params, batch_stats))
        metrics = {**metrics, "finite": finite.astype(jnp.float32)}
        if skip_not_finite:
            old = dataclasses.replace(state, step=new.step)
            new = jax.lax.cond(finite, lambda new, _: new, lambda _, old: old, new, old)
        return new, metrics

    return train_step


def _all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all leaves are finite; small ones are looked at together.

    A look at each would be a fifth of the kernels of a ResNet-20's step on a GPU. The barrier keeps
    XLA from taking the looks apart again.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size < SMALL]
    parts = [leaf for leaf in leaves if leaf.size >= SMALL]
    if small:
        with jax.numpy_dtype_promotion("standard"):
            parts.append(jax.lax.optimization_barrier(jnp.concatenate(small)))
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(part)) for part in parts]))


def make_eval_step(
    model: nn.Module, weights: Callable[[Any], Any] = lambda params: params
) -> Callable[..., Metrics]:
    """The step `(state, batch, axis_name="batch") -> sums` over the examples of weight 1.

    The batch is that of `classification_loss` with "weight" [b], 0 for padding. The sums are loss
    (cross-entropy), correct and weight, over all devices.
    """

    def eval_step(
        state: TrainState, batch: dict[str, Array], axis_name: str | None = "batch"
    ) -> Metrics:
        logits: Any = model.apply(
            {"params": weights(state.params), "batch_stats": state.batch_stats},
            batch["image"],
            train=False,
        )
        correct = jnp.argmax(logits, -1) == batch["label"]
        sums = {
            "loss": jnp.sum(cross_entropy(logits, batch["label"]) * batch["weight"]),
            "correct": jnp.sum(correct * batch["weight"]),
            "weight": jnp.sum(batch["weight"]),
        }
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
