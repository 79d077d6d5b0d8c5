"""One training step and one evaluation step, as pure functions of one device's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cka_sr_jax.similarity.cka import cka_penalty
from cka_sr_jax.sparsity import apply_masks, get_masks

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; the masks are inside `opt_state`."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    key: Array,
    images: Array,
    prune: Callable[[Any, Any], Any] = apply_masks,
) -> TrainState:
    """Initial parameters (already pruned), statistics and optimizer state.

    Args:
      images: any input of the model's shape and type.
      prune: `(params, masks) -> params` at the start, such as `rescale_kept`.
    """
    variables = model.init(key, images, train=False)
    opt_state = tx.init(variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=prune(variables["params"], get_masks(opt_state)),
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
    )


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """-sum_c t_c log softmax(logits)_c, t the one-hot label mixed with `smoothing` / classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    *,
    beta: float | Array = 0.0,
    every: int = 1,
    end: int | None = None,
    label_smoothing: float = 0.0,
    sync: bool = False,
    penalty: Callable[..., Array] = cka_penalty,
    **penalty_options: Any,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step `(state, batch, axis_name="batch") -> (state, metrics)` of one device.

    It minimizes cross-entropy + beta * penalty(features), the penalty being added in every
    `every`-th step (the CKA-SR paper's batches_to_cal, without rescaling) before step `end`, or to
    the last. Gradients, metrics and BatchNorm statistics are averaged over the axis, so the step
    belongs inside `jax.pmap`, `jax.shard_map` or `jax.vmap` with that axis name; `axis_name=None`
    is one device on its own.

    Args:
      model: Linen module called as `model.apply(variables, images, train=True)` that sows its
        features; see `cka_sr_jax.models`.
      tx: optimizer, usually from `sparsify`.
      sync: average HSIC over the devices before the CKA ratio; otherwise each device adds its own
        CKA, as the reference code does.
      penalty: of the features; `cca.cca_penalty` is there to compare with.
      penalty_options: of the penalty.

    The batch is {"image": [b, h, w, c] floats, "label": [b] integers}. Metrics are scalars: loss,
    task_loss, accuracy, and cka_penalty, the penalty's value (NaN in steps that leave it out).
    """
    penalized = not isinstance(beta, int | float) or beta != 0  # an array may hold any number

    def train_step(
        state: TrainState, batch: dict[str, Array], axis_name: str | None = "batch"
    ) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats", "features"],
            )
            task_loss = cross_entropy(logits, batch["label"], label_smoothing).mean()
            loss, metrics = task_loss, {"task_loss": task_loss}
            if penalized:
                due = state.step % every == 0
                if end is not None:
                    due &= state.step < end
                options = penalty_options | ({"axis_name": axis_name} if sync else {})
                similarity = jax.lax.cond(
                    due,
                    lambda features: penalty(features, **options),
                    lambda features: jnp.zeros(()),
                    updated.get("features", {}),
                )
                loss = task_loss + beta * similarity
                metrics["penalty"] = jnp.where(due, similarity, jnp.nan)
            metrics["loss"] = loss
            metrics["accuracy"] = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
            return loss, (metrics, updated.get("batch_stats", {}))

        grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        if axis_name is not None:
            grads, metrics, batch_stats = jax.lax.pmean((grads, metrics, batch_stats), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def make_eval_step(model: nn.Module) -> Callable[..., Metrics]:
    """The step `(state, batch, axis_name="batch") -> sums` over the examples of weight 1.

    The batch is that of `make_train_step` with "weight" [b], 0 for padding. The sums are loss
    (cross-entropy), correct and weight, over all devices.
    """

    def eval_step(
        state: TrainState, batch: dict[str, Array], axis_name: str | None = "batch"
    ) -> Metrics:
        logits: Any = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats}, batch["image"], train=False
        )
        correct = jnp.argmax(logits, -1) == batch["label"]
        sums = {
            "loss": jnp.sum(cross_entropy(logits, batch["label"]) * batch["weight"]),
            "correct": jnp.sum(correct * batch["weight"]),
            "weight": jnp.sum(batch["weight"]),
        }
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
