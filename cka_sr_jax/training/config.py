"""A run's config: its defaults, and the checks that need no data. The fields are in fields.py."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cka_sr_jax.training.fields import FIELDS, FREE_GROUPS, unknown_field
from cka_sr_jax.training.methods import changes_until_the_end, check_options

# Fields that may differ when a run is resumed: they do not change what it computes.
RESUMABLE = tuple(name for name, field in FIELDS.items() if field.resumable)


class ConfigError(ValueError):
    """A mistake in a config or in how a run is started, found before anything is written."""


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
    """Raise a ValueError as a ConfigError: each part says in its own words what it cannot do."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def default_config() -> ConfigDict:
    """Every field of a run with its default; a file in `configs/` changes what it needs."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        *groups, key = name.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ConfigDict()
            group = group[part]
        if field.kind is dict:
            group[key] = ConfigDict()
        else:  # a placeholder is None and keeps the type of what may be set
            group[key] = placeholder(field.kind) if field.default is None else field.default
    return config


def flatten(config: Any) -> dict[str, Any]:
    """{"penalty.beta": 1e-4, ...} of a nested config, or of the dict in its JSON file."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict | ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """{"penalty.beta": 1e-4, ...} of a stored config; fields that it lacks have their default."""
    return flatten(default_config()) | flatten(config)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """A field in which two flat configs differ, so that one's run cannot go on as the other's."""
    fields = [field for field in before | now if field not in RESUMABLE]
    return next((field for field in fields if before.get(field) != now.get(field)), None)


def is_layer_sparsity(config: ConfigDict) -> bool:
    """Whether a config asks for an experiment of layer sparsity in place of a run."""
    return bool(config.layer_sparsity.strengths) or config.layer_sparsity.score != "none"


def is_free(name: str) -> bool:
    """Whether a field is the config's own: an axis of a grid, or an option of the model."""
    return name.startswith(tuple(f"{group}." for group in FREE_GROUPS))


def validate(config: ConfigDict, devices: int) -> None:
    """Check all of a config that can be checked without data, model and work directory.

    Args:
      devices: how many will train.

    Raises:
      ConfigError: in one sentence, for the first field that cannot work.
    """
    check_fields(config)
    for check in (_check_shares, _check_pairs, _check_stream, _check_method, _check_penalty,
                  _check_wandb):  # fmt: skip
        check(config)
    _check_batch(config, devices)


def check_fields(config: ConfigDict) -> None:
    """Check each field by itself: that it is there, its name, type, choices and range.

    Raises:
      ConfigError: in one sentence, for the first field that is wrong.
    """
    values = flatten(config)
    for name, value in values.items():
        if is_free(name):
            continue
        if name not in FIELDS:
            raise ConfigError(unknown_field(name))
        if problem := FIELDS[name].problem(name, value):
            raise ConfigError(problem)
    for name, field in FIELDS.items():
        if name not in values and field.kind is not dict:
            raise ConfigError(f"The config has no field {name}: start from default_config().")


def _check_shares(config: ConfigDict) -> None:
    """Gradual pruning starts, reaches its density and ends in this order."""
    sparsity = config.sparsity
    shares = {"start": sparsity.start, "prune_end": sparsity.prune_end, "end": sparsity.end}
    given = [(name, share) for name, share in shares.items() if share is not None]
    for (first, early), (second, late) in itertools.pairwise(given):
        if early > late:
            raise ConfigError(
                f"sparsity.{first}={early}: expected a share of the run no later than "
                f"sparsity.{second}={late}, so lower the first or raise the second."
            )


def _check_pairs(config: ConfigDict) -> None:
    """Fields that have to fit one another."""
    data, sparsity = config.data, config.sparsity
    if data.name == "relu_teacher" and not is_layer_sparsity(config):
        raise ConfigError(
            "data.name='relu_teacher' is for layer sparsity: set layer_sparsity.strengths, such as "
            "(0.01, 0.1), or choose images, such as data.name='digits'."
        )
    if config.layer_sparsity.strengths and config.layer_sparsity.score != "none":
        raise ConfigError(
            f"layer_sparsity.score={config.layer_sparsity.score!r} removes layers without the "
            "penalty of layer_sparsity.strengths: set the strengths to (), or the score to 'none'."
        )
    if config.model.start and is_layer_sparsity(config):
        raise ConfigError(
            f"model.start={config.model.start!r} is for ordinary runs, and layer sparsity trains "
            "its networks from the start: leave it empty."
        )
    if len(data.mean) != len(data.std):
        raise ConfigError(
            f"data.mean={data.mean} and data.std={data.std}: expected one of each for every "
            "channel, or () for both to measure them."
        )
    if sparsity.n is not None and sparsity.m is not None and sparsity.n >= sparsity.m:
        raise ConfigError(
            f"sparsity.n={sparsity.n}: expected less than sparsity.m={sparsity.m}, such as 2 of 4."
        )
    first, last = sparsity.drop_fraction, sparsity.final_drop_fraction
    if first is not None and last is not None and last > first:
        raise ConfigError(
            f"sparsity.final_drop_fraction={last}: expected at most "
            f"sparsity.drop_fraction={first}, from which it falls."
        )
    if sparsity.initial_density is not None and sparsity.initial_density < sparsity.density:
        raise ConfigError(
            f"sparsity.initial_density={sparsity.initial_density}: expected at least "
            f"sparsity.density={sparsity.density}, to which it is pruned."
        )
    if sparsity.new_weights == "adam" and config.optimizer.name != "adamw":
        raise ConfigError(
            f"sparsity.new_weights='adam' corrects Adam's bias and optimizer.name is "
            f"{config.optimizer.name!r}: leave it at 'full', or train with adamw."
        )
    if config.eval.select == "best-validation" and data.validation == 0:
        raise ConfigError(
            "eval.select='best-validation' needs validation images and data.validation is 0: "
            "hold some out, such as data.validation=0.1, or use eval.select='last'."
        )


def _check_stream(config: ConfigDict) -> None:
    """What a streamed set needs, and what needs a set in memory."""
    data = config.data
    if data.stream != (data.crop > 0):
        raise ConfigError(
            f"data.stream={data.stream} and data.crop={data.crop}: expected True with a crop, such "
            "as 224, or False with 0, since streamed images alone are cropped."
        )
    if not data.stream:
        return
    if not data.mean:
        raise ConfigError(
            "data.stream=True needs data.mean and data.std, which are not measured on images that "
            "stay on the disk: set one of each for every channel, such as (0.485, 0.456, 0.406) "
            "and (0.229, 0.224, 0.225)."
        )
    if is_layer_sparsity(config):
        raise ConfigError(
            "layer sparsity trains on all images at once and data.stream=True leaves "
            "them on the disk: set data.stream=False and data.crop=0."
        )


def _check_method(config: ConfigDict) -> None:
    """The options of the method of sparse training."""
    with config_errors():
        check_options(config.sparsity)
    if changes_until_the_end(config.sparsity.rule) and config.eval.select != "last":
        raise ConfigError(
            f"eval.select={config.eval.select!r} would compare accuracies at different densities, "
            f"which {config.sparsity.rule!r} changes up to the last step: use 'last'."
        )


def _check_penalty(config: ConfigDict) -> None:
    """What the two similarities can do."""
    penalty = config.penalty
    if penalty.beta == 0 or penalty.similarity == "cka":
        return
    if penalty.kernel != "linear":
        raise ConfigError(
            f"penalty.kernel={penalty.kernel!r} is for CKA and penalty.similarity is "
            f"{penalty.similarity!r}: use 'linear'."
        )
    if penalty.sync or penalty.batches > 1:
        raise ConfigError(
            f"penalty.sync={penalty.sync} and penalty.batches={penalty.batches} average HSIC, "
            f"which penalty.similarity={penalty.similarity!r} has none of: use False and 1."
        )


def _check_wandb(config: ConfigDict) -> None:
    """W&B is installed, and the experiment has metrics to show there."""
    project = config.report.wandb
    if not project:
        return
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # None of a mere folder called wandb, which W&B makes
        raise ConfigError(
            f"report.wandb={project!r} needs the package wandb, which is not installed: "
            "pip install 'cka_sr_jax[wandb]', or leave report.wandb empty."
        )
    if is_layer_sparsity(config):
        raise ConfigError(
            f"report.wandb={project!r} shows runs with metrics, and layer sparsity is an "
            "experiment without: leave report.wandb empty."
        )


def _check_batch(config: ConfigDict, devices: int) -> None:
    """The devices share the batch equally, and each part has the samples of the penalty."""
    batch, parts, penalty = config.train.batch_size, config.train.accumulate, config.penalty
    share, several = devices * parts, parts > 1
    if batch % share:
        each = f" with train.accumulate={parts} parts each" if several else ""
        raise ConfigError(
            f"train.batch_size={batch} does not divide over {devices} devices{each}: "
            f"use {batch // share * share or share}."
        )
    if penalty.beta == 0:
        return
    size = batch // share
    samples = size // penalty.batches if penalty.samples == -1 else penalty.samples
    least, kind = (4, "debiased") if penalty.debiased else (2, "biased")
    if samples < least:
        raise ConfigError(
            f"penalty.samples={penalty.samples} gives {samples} samples and {kind} "
            f"{penalty.similarity.upper()} needs at least {least}: use {least} or more, or -1 for "
            "the whole batch."
        )
    if samples * penalty.batches > size:
        whole = f"each of train.accumulate={parts} parts of " if several else ""
        fewer = ", or lower train.accumulate" if several else ""
        raise ConfigError(
            f"penalty.samples={penalty.samples} in penalty.batches={penalty.batches} needs "
            f"{samples * penalty.batches} samples and {whole}each device's batch has {size}: "
            f"lower penalty.samples or raise train.batch_size{fewer}."
        )
