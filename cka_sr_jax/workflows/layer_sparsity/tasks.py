"""What a fully connected network learns: images in classes, or a random ReLU network's values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from cka_sr_jax.data import Images, Labels, load_dataset, normalize
from cka_sr_jax.training.build import image_statistics
from cka_sr_jax.training.config import ConfigError
from cka_sr_jax.training.step import cross_entropy

TEACHER = "relu_teacher"
TEACHER_EVALUATION_SHARE = 0.5  # of validation and of test examples, against training ones


class Split(NamedTuple):
    """Examples: inputs [n, in] float32; targets [n] int32 classes or [n, out] float32 values."""

    inputs: Float[Array, "n in"]
    targets: Shaped[Array, "n ..."]


class Task(NamedTuple):
    """Data, and what is minimized and reported on it.

    Attributes:
      outputs: of the network.
      loss: `(outputs [n, out], targets) -> [n]`, minimized.
      error: the same, reported: 0 or 1 for a class, the squared error for a value.
      error_name: "error rate" or "squared error".
      nonnegative_input: whether no input can be negative, so that the first layer may merge too.
      teacher_layers: active hidden layers of the network that made the data, None for real data.
      scaling: what the inputs were normalized with, for those who use the network.
    """

    train: Split
    validation: Split
    test: Split
    outputs: int
    loss: Callable[[Array, Array], Float[Array, " n"]]
    error: Callable[[Array, Array], Float[Array, " n"]]
    error_name: str
    nonnegative_input: bool
    teacher_layers: int | None
    scaling: dict[str, Any]


def load_task(config: ConfigDict) -> Task:
    """The task of a run's config: `data.name` = "relu_teacher", or a set of images.

    Raises:
      ConfigError: no validation data.
      ValueError: data that are not there, in the words of `cka_sr_jax.data`.
    """
    if config.data.name == TEACHER:
        return teacher_task(config.layer_sparsity.teacher, config.seed)
    if config.data.validation == 0:
        raise ConfigError(
            "layer_sparsity chooses its strength on validation data and data.validation is 0: "
            "hold some out, for example data.validation=0.1."
        )
    return image_task(config)


def image_task(config: ConfigDict) -> Task:
    """Classification of flattened, normalized images; the error is the share of wrong answers."""
    data = load_dataset(config.data)
    mean, std = image_statistics(config, data)

    def split(images: Images, labels: Labels) -> Split:
        inputs = normalize(jnp.asarray(images), mean, std)
        return Split(inputs.reshape(len(images), -1), jnp.asarray(labels))

    return Task(
        train=split(data.train_images, data.train_labels),
        validation=split(data.validation_images, data.validation_labels),
        test=split(data.test_images, data.test_labels),
        outputs=data.num_classes,
        loss=partial(cross_entropy, smoothing=config.train.label_smoothing),
        error=wrong_class,
        error_name="error rate",
        nonnegative_input=max(mean) <= 0,  # pixels are in [0, 1] before the mean is taken off
        teacher_layers=None,
        scaling={"mean": mean, "std": std},
    )


def teacher_task(config: ConfigDict, seed: int) -> Task:
    """Regression on y = (f(x) - E f) / sd(f) + noise * e, with x and e standard normal.

    f is a ReLU network of `active` hidden layers of `width` units and one output: kernels
    N(0, 2 / fan_in), biases N(0, 0.1^2). Any deeper network represents it with `active` active
    layers: a layer between two ReLUs may be the identity, which has no negative part. The seed
    draws the network and the data; validation and test data have half the training examples each.

    Args:
      config: a run's `config.layer_sparsity.teacher`.
    """
    rng = np.random.default_rng((seed, 20061560))
    widths = [config.inputs, *[config.width] * config.active, 1]
    layers = [
        (rng.normal(size=(m, n)) * np.sqrt(2 / m), rng.normal(size=n) * 0.1)
        for m, n in itertools.pairwise(widths)
    ]
    evaluation = round(TEACHER_EVALUATION_SHARE * config.examples)
    counts = [config.examples, evaluation, evaluation]
    inputs = rng.normal(size=(sum(counts), config.inputs))
    values = inputs
    for i, (kernel, bias) in enumerate(layers):
        values = values @ kernel + bias
        values = np.maximum(values, 0) if i < config.active else values
    values = (values - values.mean()) / values.std()
    values += config.noise * rng.normal(size=values.shape)
    ends = np.cumsum(counts)
    train, validation, test = (
        Split(*(jnp.asarray(a[end - count : end], jnp.float32) for a in (inputs, values)))
        for count, end in zip(counts, ends, strict=True)
    )
    return Task(
        train=train,
        validation=validation,
        test=test,
        outputs=1,
        loss=squared_error,
        error=squared_error,
        error_name="squared error",
        nonnegative_input=False,
        teacher_layers=config.active,
        scaling={},
    )


def squared_error(
    outputs: Float[Array, "n out"], targets: Float[Array, "n out"]
) -> Float[Array, " n"]:
    """||output - target||^2 of each example."""
    return jnp.sum((outputs - targets) ** 2, axis=-1)


def wrong_class(logits: Float[Array, "n classes"], labels: Array) -> Float[Array, " n"]:
    """1 where the largest logit is not the label's, else 0."""
    return (jnp.argmax(logits, -1) != labels).astype(jnp.float32)
