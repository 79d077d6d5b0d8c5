"""Methods that learn their masks, as a config names them: STR, DST and SR-STE."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array
from ml_collections import ConfigDict

from cka_sr_jax.sparsity import Reparametrization, dst, sr_ste, str_
from cka_sr_jax.training.optimizer import rule_options

METHODS: dict[str, Callable[..., Reparametrization]] = {"dst": dst, "sr_ste": sr_ste, "str": str_}


def create_method(config: ConfigDict | Mapping[str, Any]) -> Reparametrization:
    """The method of a run's `config.sparsity` whose rule is in METHODS.

    Raises:
      ValueError: a field set that the method does not have, one that it misses, or one that it
        cannot work with.
    """
    rule = config["rule"]
    parameters = inspect.signature(METHODS[rule]).parameters
    options = rule_options(config, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"Sparsity rule {rule!r} needs the option sparsity.{name}.")
    return METHODS[rule](**options)


class ReparametrisedModel(NamedTuple):
    """A Linen model whose parameters are the trained tree of a reparametrization."""

    model: nn.Module
    method: Reparametrization

    def init(self, key: Array, images: Array, train: bool) -> dict[str, Any]:
        """The model's variables, with the trained tree as "params"."""
        variables = self.model.init(key, images, train=train)
        return {**variables, "params": self.method.init(variables["params"])}

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model applied with its sparse weights."""
        weights = self.method.weights(variables["params"])
        return self.model.apply({**variables, "params": weights}, *args, **kwargs)


def model_part(tree: Any) -> Any:
    """The part of parameters or masks that is shaped like the model's own parameters."""
    return tree["weights"] if {"weights"} <= set(tree) <= {"weights", "thresholds"} else tree
