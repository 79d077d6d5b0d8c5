"""The fields of a run's config, their defaults, and the checks that need no data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cka_sr_jax._errors import unknown
from cka_sr_jax.sparsity import DISTRIBUTIONS
from cka_sr_jax.training.methods import METHOD_NAMES, changes_until_the_end, check_options

# Where the reported weights come from: the last step, or the evaluation with the best accuracy.
SELECTIONS = ("last", "best-validation", "best-test")


class ConfigError(ValueError):
    """A mistake in a config or in how a run is started, found before anything is written."""


def default_config() -> ConfigDict:
    """Every field of a run with its default; a file in `configs/` changes what it needs."""
    config = ConfigDict()
    config.seed = 0
    config.seeds = ()  # of a grid: run every point with each of them
    config.grid = (
        ConfigDict()
    )  # of a grid: values for some fields, such as grid.penalty.beta = (0, 1)

    config.data = ConfigDict()
    config.data.name = "digits"  # or the name of a TFDS set
    config.data.dir = ""  # the folder of TFDS sets prepared as array_record
    config.data.cache_dir = ""  # of decoded images; "": the user's cache folder
    config.data.validation = 0.1  # share of the training split
    config.data.downsample = 1  # side of the squares of pixels that are averaged into one
    config.data.mean = ()  # per channel, of images in [0, 1]; (): measured on the training images
    config.data.std = ()
    config.data.flip = False  # left-right, at random
    config.data.pad = 0  # pixels on each side before a random crop
    config.data.pad_mode = "reflect"  # or "zero"

    config.model = ConfigDict()
    config.model.name = "mlp"  # mlp, lenet5, resnet20 (any 6n+2), resnet18, resnet34
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16; weights stay float32
    config.model.options = ConfigDict()  # of the model class, such as hidden = (300, 100)

    config.train = ConfigDict()
    config.train.epochs = 10.0
    config.train.steps = 0  # if positive, instead of epochs
    config.train.batch_size = 128  # over all devices
    config.train.label_smoothing = 0.0
    config.train.parallel = "pmap"  # or "shard_map"
    config.train.log_every = 50  # steps

    config.eval = ConfigDict()
    config.eval.every = 0  # steps; 0: each epoch
    config.eval.batch_size = 500
    config.eval.select = "last"  # or "best-validation", or "best-test" (as the CIFAR-100 reference)

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4  # on every parameter
    config.optimizer.schedule = "step"  # constant, step or cosine
    config.optimizer.decay_at = (0.5, 0.75)  # shares of the run at which "step" decays
    config.optimizer.decay_factor = 0.1
    config.optimizer.warmup = 0.0  # share of the run: linear from 0

    config.sparsity = ConfigDict()
    # A name in sparsity.RULES; snip, grasp, synflow, ntt (before training); str, dst, sr_ste.
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05  # dense, str, dst and sr_ste have none or their own
    config.sparsity.exclude = ()  # path patterns of parameters that stay dense
    config.sparsity.rescale = (
        False  # kept initial weights to the norm of all: deep nets without norms
    )
    config.sparsity.end = 0.75  # share of the run after which no rule changes the masks
    # Options of some rules, under the names they have there; None: the rule's own default.
    config.sparsity.distribution = placeholder(str)  # in sparsity.DISTRIBUTIONS; gmp: or "global"
    config.sparsity.exact = placeholder(bool)  # rst: exact counts per layer, or Bernoulli draws
    config.sparsity.update_every = placeholder(int)  # steps
    config.sparsity.start = placeholder(float)  # gmp, granet: share of the run
    config.sparsity.prune_end = placeholder(float)  # granet: share of the run
    config.sparsity.initial_density = placeholder(float)  # granet
    config.sparsity.drop_fraction = placeholder(float)
    config.sparsity.final_drop_fraction = placeholder(float)  # 0.005 makes ITOP of set and rigl
    config.sparsity.schedule = placeholder(str)  # of the drop fraction: cosine, linear, constant
    config.sparsity.drop = placeholder(str)  # a name in sparsity.SCORES
    config.sparsity.grow = placeholder(str)
    config.sparsity.gradient_weight = placeholder(float)  # mest
    config.sparsity.soft = placeholder(bool)  # mest: EM&S
    config.sparsity.momentum = placeholder(float)  # snfs
    config.sparsity.rounds = placeholder(int)  # synflow; ntt: batches to train on
    config.sparsity.alpha = placeholder(float)  # dst; its density follows from this
    config.sparsity.initial = placeholder(float)  # str; its density follows from the weight decay
    config.sparsity.n = placeholder(int)  # sr_ste: n of m weights
    config.sparsity.m = placeholder(int)
    config.sparsity.decay = placeholder(float)  # sr_ste
    config.sparsity.shuffle = placeholder(bool)  # snip, grasp, synflow: their layer ratios only

    config.penalty = ConfigDict()
    config.penalty.beta = 1e-4  # 0 switches the penalty off
    config.penalty.samples = 8  # the first n of each device's batch; -1: all
    config.penalty.every = 1  # steps
    config.penalty.end = 1.0  # share of the run after which the penalty is off
    config.penalty.batches = 1  # sub-batches of `samples` to average HSIC over
    config.penalty.pairs = "group"  # or "all"
    config.penalty.reduction = "sum"  # or "mean"
    config.penalty.debiased = True  # False: the biased estimator, near 1 where samples are few
    config.penalty.sync = False  # average HSIC over the devices before the ratio
    config.penalty.kernel = "linear"  # or "rbf", whose values no sample can drive by its size
    config.penalty.similarity = "cka"  # or "cca", to compare with (the paper's table 3)

    # Lottery tickets (`workflows.lottery`): rounds of training, pruning and rewinding.
    config.lottery = ConfigDict()
    config.lottery.rounds = 0  # after the dense one; 0: an ordinary run
    config.lottery.prune = 0.2  # share of the remaining weights, in each round
    config.lottery.rewind = 0.0  # share of the run; 0: to the initial weights

    # Layer sparsity (`workflows.layer_sparsity`): fit along a path, merge layers, refit.
    config.layer_sparsity = ConfigDict()
    config.layer_sparsity.strengths = ()  # of the penalty, increasing; (): an ordinary run
    config.layer_sparsity.standard_errors = 1.0  # of the best validation error, to be shallower
    config.layer_sparsity.refit_l1 = 0.0  # strength of connection sparsity in the refit
    config.layer_sparsity.refit_row_group = 0.0  # strength of node sparsity in the refit
    config.layer_sparsity.refit_keep_zeros = False  # merged weights that are 0 stay 0
    config.layer_sparsity.teacher = ConfigDict()  # of data.name = "relu_teacher"
    config.layer_sparsity.teacher.active = 2  # hidden layers
    config.layer_sparsity.teacher.inputs = 10
    config.layer_sparsity.teacher.width = 16
    config.layer_sparsity.teacher.examples = 4000  # of training; half for validation and test each
    config.layer_sparsity.teacher.noise = 0.3  # standard deviation; that of the values is 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 0  # steps; 0: each epoch
    config.checkpoint.keep = 2
    return config


# Fields that may differ when a run is resumed: they do not change what it computes.
RESUMABLE = ("data.dir", "data.cache_dir", "train.log_every", "checkpoint.every", "checkpoint.keep")


def flatten(config: Any) -> dict[str, Any]:
    """{"penalty.beta": 1e-4, ...} of a nested config, or of the dict in its JSON file."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict | ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def read_config(path: Path) -> dict[str, Any]:
    """{"penalty.beta": 1e-4, ...} of a run's config.json; fields that are newer have their default.

    Raises:
      ValueError: the file is no JSON.
    """
    return flatten(default_config()) | flatten(json.loads(path.read_text()))


def validate(config: ConfigDict, devices: int) -> None:
    """Raise ConfigError, in one sentence, for the first field that cannot work."""
    default = default_config()
    expected = flatten(default)
    for field, value in flatten(config).items():
        if field.startswith(("model.options.", "grid.")):
            continue
        if field not in expected:
            raise ConfigError(unknown("config field", field, expected))
        if value is not None or expected[field] is not None:
            _check_type(field, value, expected[field], _type_of(default, field))
    _check_choices(config)
    _check_ranges(config)
    _check_strengths(config.layer_sparsity.strengths)
    _check_batch(config, devices)


def _type_of(config: ConfigDict, field: str) -> type:
    *groups, key = field.split(".")
    for group in groups:
        config = config[group]
    return config.get_type(key)  # also of a field that is None until it is set


def _check_type(field: str, value: Any, default: Any, kind: type) -> None:
    example = "" if default is None or kind is tuple else f", such as {default!r}"
    allowed: Any = {float: (int, float), tuple: list}.get(
        kind, kind
    )  # flatten turns tuples into lists
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(
            f"{field}={value!r} has the wrong type: it takes a {kind.__name__}{example}."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field}={value} is not a finite number{example}.")
    item = str if field == "sparsity.exclude" else int | float
    if isinstance(value, list | tuple) and not all(isinstance(entry, item) for entry in value):
        items = "strings" if item is str else "numbers"
        raise ConfigError(f"{field}={value!r} has the wrong type: it takes a tuple of {items}.")


def _check_choices(config: ConfigDict) -> None:
    choices = {
        "data.pad_mode": ("reflect", "zero"),
        "sparsity.rule": METHOD_NAMES,
        "sparsity.distribution": [*DISTRIBUTIONS, "global", None],
        "model.dtype": ("float32", "bfloat16"),
        "train.parallel": ("pmap", "shard_map"),
        "eval.select": SELECTIONS,
        "optimizer.name": ("sgd", "adamw"),
        "optimizer.schedule": ("constant", "step", "cosine"),
        "penalty.pairs": ("group", "all"),
        "penalty.reduction": ("sum", "mean"),
        "penalty.kernel": ("linear", "rbf"),
        "penalty.similarity": ("cka", "cca"),
    }
    values = flatten(config)
    for field, known in choices.items():
        if values[field] not in known:
            raise ConfigError(unknown(field, values[field], filter(None, known)))
    _check_rule(config)
    if config.eval.select == "best-validation" and config.data.validation == 0:
        raise ConfigError(
            "eval.select='best-validation' needs validation data and data.validation is 0: "
            "hold some out, for example data.validation=0.1, or use eval.select='last'."
        )


def _check_rule(config: ConfigDict) -> None:
    """Options that the method lacks, before any data is read."""
    try:
        check_options(config.sparsity)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if changes_until_the_end(config.sparsity.rule) and config.eval.select != "last":
        raise ConfigError(
            f"eval.select={config.eval.select!r} would choose by accuracy among densities, which "
            f"{config.sparsity.rule!r} changes up to the last step: use 'last'."
        )


def _check_ranges(config: ConfigDict) -> None:
    values = flatten(config)
    if config.train.steps <= 0 and config.train.epochs <= 0:
        raise ConfigError(
            f"train.epochs={config.train.epochs} and train.steps={config.train.steps} train for "
            "no step: make one of them positive."
        )
    at_least = {
        "seed": 0,
        "data.pad": 0,
        "data.downsample": 1,
        "train.steps": 0,
        "train.batch_size": 1,
        "train.log_every": 1,
        "eval.every": 0,
        "eval.batch_size": 1,
        "optimizer.learning_rate": 0,
        "optimizer.momentum": 0,
        "optimizer.weight_decay": 0,
        "optimizer.warmup": 0,
        "penalty.beta": 0,
        "penalty.every": 1,
        "penalty.batches": 1,
        "lottery.rounds": 0,
        "lottery.rewind": 0,
        "layer_sparsity.standard_errors": 0,
        "layer_sparsity.refit_l1": 0,
        "layer_sparsity.refit_row_group": 0,
        "layer_sparsity.teacher.active": 1,
        "layer_sparsity.teacher.inputs": 1,
        "layer_sparsity.teacher.width": 1,
        "layer_sparsity.teacher.examples": 4,
        "layer_sparsity.teacher.noise": 0,
        "checkpoint.every": 0,
        "checkpoint.keep": 1,
    }
    for field, least in at_least.items():
        if not values[field] >= least:
            raise ConfigError(f"{field}={values[field]} is too small: it is at least {least}.")
    if not 0 < config.sparsity.density <= 1:
        raise ConfigError(
            f"sparsity.density={config.sparsity.density} is not in (0, 1]: it is the share of "
            "weights that is kept, for example 0.05 for 95 % sparsity."
        )
    if not 0 < config.sparsity.end <= 1:
        raise ConfigError(
            f"sparsity.end={config.sparsity.end} is not in (0, 1]: it is the share of the run "
            "after which the masks stay."
        )
    if not 0 <= config.penalty.end <= 1:
        raise ConfigError(
            f"penalty.end={config.penalty.end} is not in [0, 1]: it is the share of the run "
            "after which the penalty is off."
        )
    if not 0 <= config.train.label_smoothing < 1:
        raise ConfigError(f"train.label_smoothing={config.train.label_smoothing} is not in [0, 1).")


def _check_strengths(strengths: tuple[Any, ...]) -> None:
    numbers = all(type(s) in (int, float) and 0 < s < math.inf for s in strengths)
    if not numbers or list(strengths) != sorted(set(strengths)):
        raise ConfigError(
            f"layer_sparsity.strengths={strengths} are not positive numbers in increasing order: "
            "write for example (0.01, 0.1), or () for an ordinary run."
        )


def _check_batch(config: ConfigDict, devices: int) -> None:
    batch = config.train.batch_size
    if batch % devices:
        raise ConfigError(
            f"train.batch_size={batch} does not divide over {devices} devices: "
            f"use {batch // devices * devices or devices}."
        )
    if config.penalty.beta == 0:
        return
    if config.penalty.similarity == "cca" and config.penalty.kernel != "linear":
        raise ConfigError(
            f"penalty.similarity='cca' has no penalty.kernel={config.penalty.kernel!r}: "
            "leave it at 'linear'."
        )
    if config.penalty.similarity == "cca" and (config.penalty.sync or config.penalty.batches > 1):
        raise ConfigError(
            "penalty.similarity='cca' averages nothing over devices or sub-batches: leave "
            "penalty.sync at False and penalty.batches at 1."
        )
    per_device = batch // devices
    samples = (
        per_device // config.penalty.batches
        if config.penalty.samples == -1
        else config.penalty.samples
    )
    least, kind = (4, "debiased") if config.penalty.debiased else (2, "biased")
    if samples < least:
        raise ConfigError(
            f"penalty.samples={config.penalty.samples} gives {samples} samples and {kind} "
            f"{config.penalty.similarity.upper()} needs at least {least}: use {least} or more, or "
            "-1 for the whole batch."
        )
    if samples * config.penalty.batches > per_device:
        raise ConfigError(
            f"penalty.samples={samples} in penalty.batches={config.penalty.batches} needs "
            f"{samples * config.penalty.batches} samples and each device's batch has {per_device}: "
            "lower penalty.samples or raise train.batch_size."
        )
