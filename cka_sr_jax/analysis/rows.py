"""A run as a row of a table: its whole config, flat, and the figures of its result."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from cka_sr_jax.training.config import RESUMABLE, default_config, flatten
from cka_sr_jax.training.evaluation import EPSILONS

Row = dict[str, Any]

# The fields of result.json that a row holds.
STORED = (
    "test.accuracy",
    "test.loss",
    "validation.accuracy",
    "density",
    "explored",
    "flops",
    "training_flops",
    "cka_within_stage",
    "cka_cross_stage",
    "outlier_share",
    *(f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS),
    "wall_seconds",
)
# The share of the KEPT weights with |w| < epsilon; `epsilon_sparsity` counts pruned ones too.
KEPT_BELOW = {f"kept_below.{epsilon:g}": f"epsilon_sparsity.{epsilon:g}" for epsilon in EPSILONS}
RESULTS = (*STORED, *KEPT_BELOW)

# Those shown in percent: accuracies, and shares of weights and of variance.
SHARES = [
    name
    for name in RESULTS
    if any(word in name for word in ("accuracy", "density", "explored", "share", "epsilon", "kept"))
]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names in any of the rows: the config's first, then the results."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name in RESULTS)


def config_row(config: Mapping[str, Any]) -> Row:
    """A run's config, flat, without the fields that do not change what it computes.

    Fields that are newer than the run have their default.
    """
    row: Row = {}
    for field, value in (flatten(default_config()) | flatten(config)).items():
        if field not in RESUMABLE:
            value = tuple(value) if isinstance(value, list) else value
            row[field] = None if value == "" else value
    return row


def parse_value(text: str) -> Any:
    """The value that `text` stands for: a number, None for "", a tuple or a bool, else the text."""
    if text == "":
        return None
    for kind in (int, float, ast.literal_eval):
        try:
            return kind(text)
        except (ValueError, SyntaxError):
            continue
    return text


def kept_below(row: Row) -> Row:
    """KEPT_BELOW of a run, None if its density does not count all weights or it diverged.

    With density d, a share e of all weights that is small is (e - (1 - d)) / d of the kept ones.
    """
    unknown_share = row.get("sparsity.exclude") or row.get("test.loss", 0.0) is None
    density = None if unknown_share else row.get("density")
    found: Row = dict.fromkeys(KEPT_BELOW)
    for name, source in KEPT_BELOW.items():
        small = row.get(source)
        if density and small is not None:
            found[name] = max(0.0, (small - (1 - density)) / density)  # both are rounded
    return found
