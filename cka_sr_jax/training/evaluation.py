"""What is measured of a network as it trains: accuracy, CKA between its layers, sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.data import eval_batches, normalize
from cka_sr_jax.report import LayerRow, kernel_positions, layer_rows, total_row
from cka_sr_jax.similarity.cka import cka_from_hsic, hsic_matrix, outlier_share
from cka_sr_jax.sparsity import get_masks, mask_metrics
from cka_sr_jax.training.build import Experiment
from cka_sr_jax.training.learned_masks import ReparametrisedModel, model_part
from cka_sr_jax.training.parallel import map_devices
from cka_sr_jax.training.step import TrainState, make_eval_step

# The CKA of a trained network is HSIC averaged over this many batches of this many images.
CKA_BATCHES, CKA_BATCH_SIZE = 4, 128
# Thresholds of `epsilon_sparsity` in result.json.
EPSILONS = (1e-4, 1e-3, 1e-2)


def eval_function(experiment: Experiment) -> Callable[..., dict[str, float]]:
    """`(state, images, labels) -> {"loss", "accuracy"}` over all examples, on all devices."""
    step = make_eval_step(experiment.model)

    def eval_on(
        state: TrainState, shard: dict[str, jax.Array], _: None, axis_name: str | None
    ) -> Any:
        images = normalize(shard["image"], experiment.mean, experiment.std)
        return step(state, {**shard, "image": images}, axis_name)

    mapped = map_devices(eval_on, experiment.devices, parallel=experiment.config.train.parallel)
    devices = len(experiment.devices)

    def evaluate(state: TrainState, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        size = math.ceil(min(experiment.config.eval.batch_size, len(labels)) / devices) * devices
        totals: list[dict[str, jax.Array]] = []
        for indices, weights in eval_batches(len(labels), size):
            shard = {"image": images[indices], "label": labels[indices], "weight": weights}
            totals.append(mapped(state, shard, None))
        sums = {name: sum(float(total[name]) for total in totals) for name in totals[0]}
        return {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sums["correct"] / sums["weight"],
        }

    return evaluate


def feature_groups(experiment: Experiment) -> dict[str, int]:
    """{stage: number of features} that the model sows."""
    features = jax.eval_shape(
        lambda state, images: _features(experiment, state, images),
        experiment.state,
        experiment.dataset.train_images[:2],
    )
    return {stage: len(jax.tree.leaves(features[stage])) for stage in sorted(features)}


def _features(experiment: Experiment, state: TrainState, images: jax.Array) -> dict[str, Any]:
    _, sown = experiment.model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        normalize(images, experiment.mean, experiment.std),
        train=False,
        mutable=["features"],
    )
    features = sown.get("features", {})
    return {stage: features[stage] for stage in sorted(features)}  # as jit orders what it returns


def cka_function(experiment: Experiment) -> Callable[[TrainState], np.ndarray | None]:
    """`state -> [l, l]`, debiased CKA between all features on validation (else training) images.

    HSIC averaged over minibatches before the ratio (Nguyen et al. 2021), in evaluation mode; None
    for a model with fewer than two features or data with fewer than 4 images.
    """
    batches = _cka_batches(experiment)
    layers = sum(feature_groups(experiment).values())
    hsic = jax.jit(lambda state, batch: hsic_matrix(_features(experiment, state, batch)))

    def matrix(state: TrainState) -> np.ndarray | None:
        if layers < 2 or len(batches[0]) < 4:
            return None
        state = _on_one_device(state)
        mean = sum(hsic(state, batch) for batch in batches) / len(batches)
        return np.asarray(cka_from_hsic(mean))

    return matrix


def mean_outlier_share(experiment: Experiment, state: TrainState) -> float | None:
    """`cka.outlier_share`, mean over the features, on the images that `cka_function` looks at."""

    @jax.jit
    def shares(state: TrainState, images: jax.Array) -> list[jax.Array]:
        features = jax.tree.leaves(_features(experiment, state, images))
        return [outlier_share(feature) for feature in features]

    found = shares(_on_one_device(state), np.concatenate(_cka_batches(experiment)))
    return float(np.mean(found)) if found else None


def _cka_batches(experiment: Experiment) -> list[np.ndarray]:
    data = experiment.dataset
    images = data.validation_images if len(data.validation_labels) else data.train_images
    size = min(CKA_BATCH_SIZE, len(images))
    count = max(1, min(CKA_BATCHES, len(images) // size))
    return [images[i * size : (i + 1) * size] for i in range(count)]


def _on_one_device(state: TrainState) -> TrainState:
    return jax.tree.map(lambda a: a.addressable_data(0), state)


def stage_means(matrix: np.ndarray | None, groups: dict[str, int]) -> dict[str, float | None]:
    """Mean CKA over the pairs of features of one stage, and of two; None where there is no pair."""
    stage = np.repeat(np.arange(len(groups)), list(groups.values()))
    same = stage[:, None] == stage[None, :]
    kinds = {"within": same & ~np.eye(len(stage), dtype=bool), "cross": ~same}
    return {
        f"cka_{kind}_stage": float(matrix[pairs].mean())
        if matrix is not None and pairs.any()
        else None
        for kind, pairs in kinds.items()
    }


def kernel_positions_of(experiment: Experiment) -> dict[str, int]:
    """{path of each kernel: number of output positions per image}, for FLOPs."""
    model, state = experiment.model, experiment.state
    if isinstance(model, ReparametrisedModel):
        model = model.model
    variables = {"params": model_part(state.params), "batch_stats": state.batch_stats}
    images = jax.ShapeDtypeStruct(experiment.dataset.train_images[:1].shape, jnp.float32)
    return kernel_positions(model, variables, images)


def sparsity_metrics(state: TrainState, positions: dict[str, int]) -> dict[str, float]:
    """`mask_metrics` of the state, and FLOPs of one image's forward pass with the kept weights.

    Neither those nor the run's training FLOPs count the penalty, or the dense gradients that some
    rules grow by.
    """
    metrics = {name: float(value) for name, value in mask_metrics(state.opt_state).items()}
    return {**metrics, "flops": total_row(layer_rows_of(state, positions)).flops}


def layer_metrics(state: TrainState, positions: dict[str, int]) -> dict[str, float]:
    """{"density/PATH": share of its weights that are kept, "flops/PATH": of one image's forward
    pass with them} of each kernel.
    """
    rows = [row for row in layer_rows_of(state, positions) if row.flops_dense]
    return {f"density/{row.path}": row.density for row in rows} | {
        f"flops/{row.path}": float(row.flops) for row in rows
    }


def layer_rows_of(state: TrainState, positions: dict[str, int]) -> list[LayerRow]:
    masks = jax.device_get(get_masks(state.opt_state))
    return layer_rows(model_part(state.params), model_part(masks), positions)
