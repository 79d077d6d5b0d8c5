"""What a config describes for training: schedule, optimizer, sparse-training rule, penalty."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax._errors import unknown
from cka_sr_jax._paths import matches
from cka_sr_jax.similarity.cca import cca_penalty
from cka_sr_jax.similarity.cka import cka_penalty
from cka_sr_jax.sparsity import Rule, make_rule
from cka_sr_jax.sparsity.registry import RULES


def create_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: constant, step or cosine, after a linear warm-up.

    Args:
      config: a run's `config.optimizer`.
      steps: length of the run.
    """
    peak = config.learning_rate
    warmup = round(config.warmup * steps)
    if config.schedule == "step":
        boundaries = {round(share * steps): config.decay_factor for share in config.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    elif config.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(peak, max(1, steps - warmup))
        main = lambda step: cosine(jnp.maximum(step - warmup, 0))  # noqa: E731
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    return lambda step: main(step) * jnp.minimum(1.0, (step + 1) / warmup)


def create_rule(config: ConfigDict, steps: int) -> Rule:
    """The sparse-training rule of a run's `config.sparsity`.

    Fields that are None are left to the rule.

    Args:
      steps: length of the run; a rule that changes its masks stops at the share `config.end` of it,
        or with the last step but one if that comes first.

    Raises:
      ValueError: a field set that the rule does not have, or one that it cannot work with.
    """
    if config.rule not in RULES:
        raise ValueError(unknown("sparsity.rule here", config.rule, RULES))
    if config.rule == "channels" and not any(matches(p, "head/kernel") for p in config.exclude):
        raise ValueError(
            "sparsity.rule='channels' would prune classes with the channels of the last layer: "
            "keep it dense with sparsity.exclude=('head/kernel',)."
        )
    parameters = inspect.signature(RULES[config.rule]).parameters
    options = rule_options(config, parameters)
    if "end_step" in parameters:
        # An update at step index t shows in step t + 1.
        options["end_step"] = max(1, min(round(config.end * steps), steps - 1))
    if "start_step" in options:
        options["start_step"] = round(config.start * steps)
    if "prune_end_step" in options:
        options["prune_end_step"] = min(round(config.prune_end * steps), steps - 1)
    try:
        return make_rule(config.rule, **options)
    except ValueError as error:
        if "end_step=" not in str(error):
            raise
        raise ValueError(
            f"{error} (end_step is sparsity.end={config.end:g} of the run's {steps} steps.)"
        ) from None


def rule_options(config: Mapping[str, Any], parameters: Container[str]) -> dict[str, Any]:
    """The fields of `config.sparsity` that are set, as options of a function with `parameters`.

    `density`, which always has a value, goes to the methods that take it.

    Raises:
      ValueError: a field set that the function does not have.
    """
    options = {}
    for name, value in config.items():
        if name in ("rule", "end", "rescale") or value is None or (name == "exclude" and not value):
            continue
        if _parameter(name) in parameters:
            options[_parameter(name)] = value
        elif name != "density":
            rule = config["rule"]
            known = (
                ", ".join(field for field in config if _parameter(field) in parameters) or "none"
            )
            raise ValueError(
                f"sparsity.{name}={value!r} is no option of sparsity.rule {rule!r}, which has "
                f"{known}: leave it out, or take a rule that has it."
            )
    return options


def _parameter(field: str) -> str:
    """A rule's own name of a field: what is a share of the run here is a step there."""
    return {"start": "start_step", "prune_end": "prune_end_step"}.get(field, field)


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD (weight decay added to the gradient, as PyTorch does) or AdamW.

    Args:
      config: a run's `config.optimizer`.
    """
    if config.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
        )
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def create_penalty(config: ConfigDict) -> Callable[..., Array]:
    """The penalty as a function of the features; that on CKA takes `axis_name` too.

    Args:
      config: a run's `config.penalty`.
    """
    samples = None if config.samples == -1 else config.samples
    options = {
        "samples": samples,
        "pairs": config.pairs,
        "reduction": config.reduction,
        "debiased": config.debiased,
    }
    if config.similarity == "cca":
        return partial(cca_penalty, **options)
    return partial(cka_penalty, batches=config.batches, kernel=config.kernel, **options)
