"""Sparse-training methods by the name that a config gives them, as one `Method` each.

This is the only file of the lab that knows the methods' names; `pruning.py`, which it alone calls,
has what the pruners of its table look at. There are three kinds:

- rules (`sparsity.registry.RULES`) carry masks and may change them while training;
- pruners choose masks before training, from the untrained model and some images;
- learned masks (`Reparametrization`) train a tree of their own, from which the weights follow.

A new rule goes into `sparsity.registry.RULES` and works in configs at once. A new pruner or
reparametrization gets a line in `PRUNERS` or `LEARNED` here.

Long because it also has the checks of what a config may say of each method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax._paths import leaf_paths, matches
from cka_sr_jax.models import stacked_layers, tied_channels
from cka_sr_jax.sparsity import (
    RULES,
    Masks,
    Rule,
    adam_correction,
    apply_masks,
    dst,
    full_masks,
    grasp,
    learn_masks,
    make_rule,
    masks_from_paths,
    ntt,
    rescale_kept,
    snip,
    soft_threshold,
    sparsify,
    sr_ste,
    static,
    synflow,
)
from cka_sr_jax.training.pruning import (
    Untrained,
    grasp_masks,
    ntt_masks,
    snip_masks,
    synflow_masks,
)

DEFAULT_METHOD = "rst"
DENSE = "dense"

# A run's `config.sparsity`, or the same part of its config.json.
Sparsity: TypeAlias = ConfigDict | Mapping[str, Any]


def _same(tree: Any) -> Any:
    return tree


class Method(NamedTuple):
    """A sparse-training method as a run uses it.

    Most methods train the model's own parameters. Those that learn their masks train another tree;
    `trained`, `weights` and `part` lead there and back.

    Attributes:
      transform: `(optimizer, seed) -> transform`; its state carries the masks.
      changes: `(steps [n]) -> [n] bool`, whether the masks may change at the end of these steps.
      start: `(trained, masks) -> trained`, done once, before the first step.
      prune: `(untrained) -> masks` of a method that chooses its masks before training, else None.
      trained: `(params) -> trained`, the tree to train for a model's initial parameters.
      weights: `(trained) -> params`, what the model runs on; differentiable.
      part: `(tree) -> tree`, of a tree like the trained one the part that is like the parameters.
    """

    transform: Callable[..., optax.GradientTransformationExtraArgs]
    changes: Callable[[Array], Array | np.ndarray]
    start: Callable[[Any, Masks], Any] = apply_masks
    prune: Callable[[Untrained], Masks] | None = None
    trained: Callable[[Any], Any] = _same
    weights: Callable[[Any], Any] = _same
    part: Callable[[Any], Any] = _same


def build_method(config: Sparsity, steps: int, model: nn.Module | None = None) -> Method:
    """The method of a run's `config.sparsity`.

    Args:
      steps: length of the run. A rule stops changing its masks at the share `config.end` of it.
      model: what is trained, which says what arrays hold a stack of layers (`stacked_layers`), and
        which layers share channels, as `config.tied` has them pruned.

    Raises:
      ValueError: an option that the method lacks, needs, or cannot work with; `config.tied` for a
        model whose layers are not known.
    """
    name, start = config["rule"], apply_masks
    if config["rescale"]:
        start = partial(rescale_kept, stacked=stacked_layers(model))
    if name in LEARNED:
        return _learned(LEARNED[name](**_options(config, model)))
    if name in PRUNERS:
        prune, options = PRUNERS[name].masks, _options(config, model)
        # The masks come later; until then every weight that may be pruned is kept.
        method = _of_rule(Rule(init=lambda key, params: all_kept_masks(config, params, model)))
        return method._replace(start=start, prune=lambda untrained: prune(untrained, options))
    new_weights = adam_correction() if config["new_weights"] == "adam" else None
    rule = _scheduled_rule(config, steps, model)
    return _of_rule(rule, new_weights=new_weights)._replace(start=start)


def fixed_masks(masks: Masks, start: Callable[[Any, Masks], Any] = apply_masks) -> Method:
    """The method that trains under these masks throughout."""
    return _of_rule(static(masks))._replace(start=start)


def all_kept_masks(config: Sparsity, params: Any, model: nn.Module | None) -> Masks:
    """Masks that keep every weight which a run's `config.sparsity` would prune in this model."""
    patterns = {"include": config["include"], "exclude": config["exclude"]}
    return full_masks(params, **patterns, stacked=stacked_layers(model))


def _of_rule(rule: Rule, **options: Any) -> Method:
    return Method(
        transform=lambda optimizer, seed: sparsify(optimizer, rule, seed=seed, **options),
        changes=lambda steps: np.broadcast_to(np.asarray(rule.due(steps)), steps.shape),
    )


def _learned(learned: Any) -> Method:
    return Method(
        transform=lambda optimizer, seed: learn_masks(optimizer, learned),
        changes=lambda steps: np.ones(steps.shape, bool),
        start=lambda trained, masks: trained,  # the dense weights
        trained=learned.init,
        weights=learned.weights,
        part=lambda tree: tree["weights"],
    )


def _scheduled_rule(config: Sparsity, steps: int, model: nn.Module | None) -> Rule:
    options = _options(config, model)
    if options.pop("tied", False) and model is not None:
        options["tied"] = tied_channels(model)
    # A weight that grows at the end of a step is first trained in the next one.
    last = max(1, steps - 2)
    for share in ("start", "prune_end"):
        if share in options:
            options[f"{share}_step"] = min(round(options.pop(share) * steps), last)
    if "end_step" in _parameters(config["rule"]):
        options["end_step"] = max(1, min(round(config["end"] * steps), last))
    try:
        return make_rule(config["rule"], **options)
    except ValueError as error:
        if "end_step=" not in str(error):
            raise
        raise ValueError(
            f"sparsity.rule {config['rule']!r} does not fit this run of {steps} steps with "
            f"sparsity.end={config['end']:g}: {error}"
        ) from None


def model_weights(config: Sparsity, trained: Any, model: nn.Module) -> Any:
    """The model's parameters from what its run with this `config.sparsity` trained and stored."""
    if config["rule"] not in LEARNED:
        return trained
    if "thresholds" in trained:  # stored without the marks of the layers that stay dense
        learned = dict(leaf_paths(trained["thresholds"]))
        trained = {**trained, "thresholds": masks_from_paths(trained["weights"], learned)}
    return jax.device_get(build_method(config, 1, model).weights(trained))


# Which options a method has.

# Fields of `config.sparsity` that are not options of a method.
_SETTINGS = ("rule", "end", "rescale", "new_weights")
# Fields whose default is empty rather than None.
_PATTERNS = ("include", "exclude")
# Arguments that a config cannot give: arrays, functions, and a rule's first masks (in a config
# `start` is a share).
_NOT_IN_CONFIGS = ("batch", "batches", "inputs", "loss", "model", "params", "start")
# Options that a config gives as shares of the run, and the steps that the rules take.
_STEPS_OF_SHARES = {"start": "start_step", "prune_end": "prune_end_step"}


def check_options(config: Sparsity) -> None:
    """Check a run's `config.sparsity` as far as it needs no data.

    Raises:
      ValueError: an unknown method; an option that the method lacks, needs, or cannot work with.
    """
    name = config["rule"]
    _options(config)
    if name in LEARNED and config["rescale"]:
        raise ValueError(
            f"sparsity.rescale=True scales what masks keep at the start, and {name!r} starts with "
            "all weights: set it to False."
        )
    if config["new_weights"] != "full" and "drop_fraction" not in _parameters(name):
        raise ValueError(
            f"sparsity.new_weights={config['new_weights']!r} is for rules that grow weights, and "
            f"{name!r} is none: leave it at 'full'."
        )
    if name == "channels" and _prunes(config, "head/kernel"):
        raise ValueError(
            "sparsity.rule='channels' would prune classes with the channels of the last layer: "
            "keep it dense with sparsity.exclude=('head/kernel',)."
        )
    if name in PRUNERS and config["distribution"] == "global":
        raise ValueError(
            f"sparsity.distribution='global' is for gradual pruning and sparsity.rule is {name!r}: "
            "leave it unset, or name a distribution over layers."
        )
    if name == "ntt" and not (config["rounds"] or 0) >= 1:
        raise ValueError(
            f"sparsity.rounds={config['rounds']}: ntt trains on this many batches before it "
            "prunes; set for example 2000."
        )


def _prunes(config: Sparsity, path: str) -> bool:
    """Whether the path patterns of `config.sparsity` leave this kernel to be pruned."""
    included = not config["include"] or any(matches(p, path) for p in config["include"])
    return included and not any(matches(p, path) for p in config["exclude"])


def changes_until_the_end(name: str) -> bool:
    """Whether the density changes up to the last step, so that no earlier weights compare."""
    return name in LEARNED


def keeps_given_masks(name: str) -> bool:
    """Whether the method trains the model's own parameters and needs no images to choose masks."""
    return name in RULE_NAMES


def takers(option: str) -> list[str]:
    """The methods that have this option, a field of `config.sparsity`."""
    return [name for name in METHOD_NAMES if option in _parameters(name)]


def _options(config: Sparsity, model: nn.Module | None = None) -> dict[str, Any]:
    """The fields of `config.sparsity` that are set, as options of its method, and its `stacked`.

    `density` always has a value and goes to the methods that take it.
    """
    name = config["rule"]
    parameters = _parameters(name)
    stacked = stacked_layers(model) if "stacked" in parameters else {}
    options: dict[str, Any] = {"stacked": stacked} if stacked else {}
    for option, value in config.items():
        if option in _SETTINGS or value is None or (option in _PATTERNS and not value):
            continue
        if option in parameters:
            options[option] = value
        elif option != "density":
            known = ", ".join(field for field in config if field in parameters) or "none"
            raise ValueError(
                f"sparsity.{option}={value!r} is an option that sparsity.rule {name!r} lacks; it "
                f"has {known}: unset this one, or choose a method that has it."
            )
    for option, default in parameters.items():
        if default is inspect.Parameter.empty and option not in (*options, "end_step"):
            raise ValueError(f"sparsity.rule {name!r} needs the option sparsity.{option}: set it.")
    return options


def _parameters(name: str) -> dict[str, Any]:
    """{option: default} of a method, under the names that `config.sparsity` has for them."""
    pruners = {pruner: kind.options_of for pruner, kind in PRUNERS.items()}
    functions: dict[str, Callable[..., Any]] = {**RULES, **LEARNED, **pruners}
    shares = {step: share for share, step in _STEPS_OF_SHARES.items()}
    options = {
        shares.get(option, option): parameter.default
        for option, parameter in inspect.signature(functions[name]).parameters.items()
        if option not in _NOT_IN_CONFIGS
    }
    return options | {"rounds": None} if name == "ntt" else options


class Pruner(NamedTuple):
    """How a run prunes before training.

    Attributes:
      masks: `(untrained, options) -> masks`, in `training.pruning`.
      options_of: the library's function, whose options a config may set.
    """

    masks: Callable[[Untrained, dict[str, Any]], Masks]
    options_of: Callable[..., Any]


PRUNERS = {
    "grasp": Pruner(grasp_masks, grasp),
    "ntt": Pruner(ntt_masks, ntt),
    "snip": Pruner(snip_masks, snip),
    "synflow": Pruner(synflow_masks, synflow),
}
LEARNED: dict[str, Callable[..., Any]] = {"dst": dst, "sr_ste": sr_ste, "str": soft_threshold}
# `static` takes masks, which a config cannot hold.
RULE_NAMES = sorted(RULES.keys() - {"static"})
METHOD_NAMES = (*RULE_NAMES, *sorted(PRUNERS), *sorted(LEARNED))
