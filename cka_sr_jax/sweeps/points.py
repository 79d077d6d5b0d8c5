"""The points of a grid: which runs a config with `grid` or `seeds` describes, and their names."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cka_sr_jax.training import ConfigError, default_config
from cka_sr_jax.training.config import flatten, validate
from cka_sr_jax.training.fields import FIELDS, unknown_field
from cka_sr_jax.training.workdir import LONGEST_NAME, PATTERN_CHARACTERS


def grid_points(config: ConfigDict) -> dict[str, ConfigDict]:
    """Every combination of the values in `config.grid`, each with every seed of `config.seeds`.

    Returns:
      {name: config of one run}. A name lists the point's values, as in
      "beta=0.01,density=0.05,seed=1". Fields are in alphabetical order and the last one changes
      fastest; seeds change fastest of all.

    Raises:
      ConfigError: the config has neither a grid nor seeds; a field does not exist; a field's values
        are not a tuple; a point's config is wrong; a name is too long for a folder.
    """
    axes = _axes_of(config)
    labels = _labels(axes)
    points: dict[str, ConfigDict] = {}
    for values in itertools.product(*axes.values()):
        point = _point(config, dict(zip(axes, values, strict=True)))
        name = ",".join(f"{labels[field]}={_value_of(point, field)}" for field in axes)
        name = re.sub(f"[/{re.escape(PATTERN_CHARACTERS)}]", "_", name.replace(" ", ""))
        if len(name.encode()) > LONGEST_NAME:
            longest = max(axes, key=lambda field: len(str(_value_of(point, field))))
            raise ConfigError(
                f"grid.{longest} has {_value_of(point, longest)}, with which a point's folder name "
                f"has {len(name.encode())} bytes, and file systems allow {LONGEST_NAME}: shorten "
                "the value, or set it in a config file of its own instead of the grid."
            )
        if name in points:
            raise ConfigError(f"two points of this grid would both be called {name}: drop one.")
        points[name] = point
    return points


def _axes_of(config: ConfigDict) -> dict[str, list[Any]]:
    """{field: its values}, checked."""
    axes = flatten(config.get("grid", {}))
    if config.get("seeds") and "seed" in axes:
        raise ConfigError("grid.seed and seeds both say which seeds to run: set only one of them.")
    if config.get("seeds"):
        axes["seed"] = list(config.seeds)
    if not axes:
        raise ConfigError(
            "this config has no grid: give it one, such as config.grid.penalty = "
            "ConfigDict({'beta': (0.0, 1e-4)}), or seeds, such as --config.seeds='(0, 1, 2)'."
        )
    known = flatten(default_config())
    del known["seeds"]
    for field, values in axes.items():
        if field not in known and not field.startswith("model.options."):
            raise ConfigError(unknown_field(field, "config field in the grid:", known))
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid.{field}={values!r} is not a tuple of values: write for example "
                f"({values!r},)."
            )
        if field in FIELDS:
            _check_values(field, values)
        if any(values.index(value) != i for i, value in enumerate(values)):
            raise ConfigError(f"grid.{field}={tuple(values)} has a value twice: list each once.")
    return axes


def _check_values(field: str, values: Sequence[Any]) -> None:
    """Each value by itself, as where the field has it alone."""
    for value in values:
        if FIELDS[field].kind is tuple and not isinstance(value, list | tuple):
            raise ConfigError(
                f"grid.{field}={tuple(values)}: each value is itself a tuple of "
                f"{FIELDS[field].expected}, so write for example (({value!r},),)."
            )
        if problem := FIELDS[field].problem(field, value):
            raise ConfigError(problem)


def _labels(fields: Iterable[str]) -> dict[str, str]:
    """{field: what names call it}: its last part, or all of it where two fields end alike."""
    last = {field: field.rpartition(".")[2] for field in fields}
    counts = Counter(last.values())
    return {field: part if counts[part] == 1 else field for field, part in last.items()}


def _point(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """The config with these fields' values and without a grid."""
    point = copy.deepcopy(config)
    point.grid, point.seeds = ConfigDict(), ()
    try:
        with point.unlocked():  # model.options may get fields that the config file does not set
            point.update_from_flattened_dict(values)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"the grid's point {dict(values)} is wrong: {error}") from error
    # Counting the devices would take the accelerator, which --jobs leaves to its processes.
    validate(point, devices=1)
    return point


def _value_of(point: ConfigDict, field: str) -> Any:
    """The value as the config converted it: 0 given for a field of floats reads 0.0."""
    value = flatten(point)[field]
    return tuple(value) if isinstance(value, list) else value
