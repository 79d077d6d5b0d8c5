"""What is measured of a network as it trains: accuracy, CKA between its layers, sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.accounting import LayerRow, kernel_positions, layer_rows, total_row
from cka_sr_jax.data import Images, Labels, normalize
from cka_sr_jax.models import ViT, stacked_layers
from cka_sr_jax.similarity import cka_over_batches, effective_rank, outlier_share
from cka_sr_jax.sparsity import get_masks, leaf_paths, mask_metrics
from cka_sr_jax.training.build import RunPlan, state_shapes
from cka_sr_jax.training.config import config_errors
from cka_sr_jax.training.input import evaluation_shards
from cka_sr_jax.training.parallel import map_devices
from cka_sr_jax.training.step import TrainState, make_eval_step

# The CKA of a trained network is HSIC averaged over this many batches of this many images.
CKA_BATCHES, CKA_BATCH_SIZE = 4, 128
# Thresholds of `epsilon_sparsity` in result.json.
EPSILONS = (1e-4, 1e-3, 1e-2)

_mask_metrics = jax.jit(mask_metrics)


class Sparsity(NamedTuple):
    """What a network's masks keep.

    Attributes:
      total: `mask_metrics`, and the FLOPs of one image's forward pass with the kept weights.
      layers: {"density/PATH", "flops/PATH"} of each kernel.
      flops_in_training: as "flops" of `total`, of the forward pass in training.
    """

    total: dict[str, float]
    layers: dict[str, float]
    flops_in_training: float


class Evaluator(NamedTuple):
    """The measurements of one run, compiled once.

    Attributes:
      accuracy: `(state, images, labels) -> {"loss", "accuracy"}` over all examples.
      cka: `(state) -> [l, l]`, CKA between all features, or None; see `cka_function`.
      ranks: `(state) -> {feature: its effective rank}` on images that `cka` looks at.
      features: {stage: number of features} that the model sows.
      positions: {path of each kernel: number of output positions per image}, for FLOPs.
      positions_in_training: likewise, in training, where a ViT that drops tokens has all of them.
      stacked: which of the model's arrays hold a stack of layers, as `layers_of` takes it.
      part: of a tree like the trained one the part that is like the model's parameters.
      weights: `(trained) -> params`, what the model runs on.
    """

    accuracy: Callable[[TrainState, Images, Labels], dict[str, float]]
    cka: Callable[[TrainState], np.ndarray | None]
    ranks: Callable[[TrainState], dict[str, float]]
    features: dict[str, int]
    positions: dict[str, int]
    positions_in_training: dict[str, int]
    stacked: dict[str, int]
    part: Callable[[Any], Any]
    weights: Callable[[Any], Any]

    def layer_rows(self, state: TrainState) -> list[LayerRow]:
        """Parameters, density and FLOPs of each layer."""
        masks = self.part(jax.device_get(get_masks(state.opt_state)))
        return layer_rows(self.part(state.params), masks, self.positions, stacked=self.stacked)

    def sparsity(self, state: TrainState) -> Sparsity:
        """What the masks keep.

        The FLOPs leave out the penalty, and the dense gradients that some rules grow by.
        """
        rows = self.layer_rows(state)
        metrics = jax.tree.map(float, _mask_metrics(state.opt_state))
        kernels = [row for row in rows if row.flops_dense]
        positions = self.positions_in_training
        return Sparsity(
            total={**metrics, "flops": total_row(rows).flops},
            layers={f"density/{row.path}": row.density for row in kernels}
            | {f"flops/{row.path}": float(row.flops) for row in kernels},
            flops_in_training=sum(2 * row.kept * positions.get(row.path, 0) for row in rows),
        )

    def kept_weights(self, state: TrainState) -> dict[str, np.ndarray]:
        """{path: its kept weights [n]} of each array that is pruned."""
        params, masks = jax.device_get((state.params, get_masks(state.opt_state)))
        weights = dict(leaf_paths(self.weights(params)))
        kept = leaf_paths(self.part(masks))
        return {path: np.asarray(weights[path])[mask] for path, mask in kept}

    @property
    def feature_names(self) -> list[str]:
        """The features in order: "stage1.0" is the first of stage1."""
        return names_of(self.features)

    @property
    def feature_groups(self) -> list[str]:
        """The stage of each feature."""
        return [stage for stage, count in self.features.items() for _ in range(count)]


def make_evaluator(plan: RunPlan) -> Evaluator:
    """The measurements of the plan's run.

    Raises:
      ConfigError: a record of a streamed set is damaged.
    """
    features = feature_groups(plan)
    positions = in_training = _kernel_positions(plan, plan.model)
    if isinstance(plan.model, ViT) and plan.model.keep_rates:  # masked in training, not removed
        in_training = _kernel_positions(plan, plan.model.clone(remove=False))
    with config_errors():  # the first records of a streamed set are read here
        cka = cka_function(plan, features)
    return Evaluator(
        accuracy=accuracy_function(plan),
        cka=cka,
        ranks=rank_function(plan, features),
        features=features,
        positions=positions,
        positions_in_training=in_training,
        stacked=stacked_layers(plan.model),
        part=plan.method.part,
        weights=plan.method.weights,
    )


def accuracy_function(plan: RunPlan) -> Callable[[TrainState, Images, Labels], dict[str, float]]:
    """`(state, images, labels) -> {"loss", "accuracy"}` over all examples, on all devices."""
    step = make_eval_step(plan.model, plan.method.weights)

    def eval_on(
        state: TrainState, shard: dict[str, jax.Array], _: None, axis_name: str | None
    ) -> Any:
        images = normalize(shard["image"], plan.mean, plan.std)
        return step(state, {**shard, "image": images}, axis_name)

    streamed = plan.dataset.is_streamed
    mapped = map_devices(
        eval_on, plan.devices, parallel=plan.config.train.parallel, own_part=streamed
    )
    devices = len(plan.devices)

    def accuracy(state: TrainState, images: Images, labels: Labels) -> dict[str, float]:
        size = math.ceil(min(plan.config.eval.batch_size, len(labels)) / devices) * devices
        totals: list[dict[str, jax.Array]] = []
        for shard in evaluation_shards(plan, images, labels, size):
            if streamed:  # few batches at the devices, each of which is large
                jax.block_until_ready(totals[-2:-1])
            totals.append(mapped(state, shard, None))
        sums = {name: sum(float(total[name]) for total in totals) for name in totals[0]}
        return {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sums["correct"] / sums["weight"],
        }

    return accuracy


def feature_groups(plan: RunPlan) -> dict[str, int]:
    """{stage: number of features} that the model sows."""
    features = jax.eval_shape(
        lambda state, images: _features(plan, state, images),
        state_shapes(plan),
        plan.dataset.train_images[:2],
    )
    return {stage: len(jax.tree.leaves(features[stage])) for stage in sorted(features)}


def _features(plan: RunPlan, state: TrainState, images: jax.Array) -> dict[str, Any]:
    _, sown = plan.model.apply(
        {"params": plan.method.weights(state.params), "batch_stats": state.batch_stats},
        normalize(images, plan.mean, plan.std),
        train=False,
        mutable=["features"],
    )
    features = sown.get("features", {})
    return {stage: features[stage] for stage in sorted(features)}  # as jit orders what it returns


def cka_function(
    plan: RunPlan, features: dict[str, int]
) -> Callable[[TrainState], np.ndarray | None]:
    """`state -> [l, l]`, debiased CKA between all features on validation (else training) images.

    HSIC averaged over minibatches before the ratio (Nguyen et al. 2021), in evaluation mode; None
    for a model with fewer than two features or data with fewer than 4 images.
    """
    batches = _cka_batches(plan)
    layers = sum(features.values())
    cka = cka_over_batches(partial(_features, plan))

    def matrix(state: TrainState) -> np.ndarray | None:
        if layers < 2 or len(batches[0]) < 4:
            return None
        return np.asarray(cka(_on_one_device(state), batches))

    return matrix


def rank_function(
    plan: RunPlan, features: dict[str, int]
) -> Callable[[TrainState], dict[str, float]]:
    """`state -> {feature: its effective rank}`, on one of `cka_function`'s batches."""

    @jax.jit
    def found(state: TrainState, images: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(_features(plan, state, images))

    def ranks(state: TrainState) -> dict[str, float]:
        if not features:
            return {}
        # Singular values by NumPy: XLA's need as long to compile as many of these.
        arrays = found(_on_one_device(state), _cka_batches(plan)[0])
        values = (float(effective_rank(np.asarray(array))) for array in arrays)
        return dict(zip(names_of(features), values, strict=True))

    return ranks


def names_of(features: dict[str, int]) -> list[str]:
    """The features in order: "stage1.0" is the first of stage1."""
    return [f"{stage}.{i}" for stage, count in features.items() for i in range(count)]


def mean_outlier_share(plan: RunPlan, state: TrainState) -> float | None:
    """`outlier_share`, mean over the features, on the images that `cka_function` looks at."""

    @jax.jit
    def shares(state: TrainState, images: jax.Array) -> list[jax.Array]:
        features = jax.tree.leaves(_features(plan, state, images))
        return [outlier_share(feature) for feature in features]

    found = shares(_on_one_device(state), np.concatenate(_cka_batches(plan)))
    return float(np.mean(found)) if found else None


def _cka_batches(plan: RunPlan) -> list[np.ndarray]:
    data = plan.dataset
    images = data.validation_images if len(data.validation_labels) else data.train_images
    size = min(CKA_BATCH_SIZE, len(images))
    count = max(1, min(CKA_BATCHES, len(images) // size))
    return [images[i * size : (i + 1) * size] for i in range(count)]


def _on_one_device(state: TrainState) -> TrainState:
    return jax.tree.map(lambda a: a.addressable_data(0), state)


def stage_means(matrix: np.ndarray | None, features: dict[str, int]) -> dict[str, float | None]:
    """Mean CKA over the pairs of features of one stage, and of two; None where there is no pair."""
    stage = np.repeat(np.arange(len(features)), list(features.values()))
    same = stage[:, None] == stage[None, :]
    kinds = {"within": same & ~np.eye(len(stage), dtype=bool), "cross": ~same}
    return {
        f"cka_{kind}_stage": float(matrix[pairs].mean())
        if matrix is not None and pairs.any()
        else None
        for kind, pairs in kinds.items()
    }


def _kernel_positions(plan: RunPlan, model: nn.Module) -> dict[str, int]:
    shapes = state_shapes(plan)
    variables = {"params": plan.method.part(shapes.params), "batch_stats": shapes.batch_stats}
    images = jax.ShapeDtypeStruct(plan.dataset.train_images[:1].shape, jnp.float32)
    return kernel_positions(model, variables, images)
