"""The weights and the masks that a run's result is of, from its newest intact checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import traverse_util

from cka_sr_jax.models import create_model
from cka_sr_jax.report.parse import parse_stored
from cka_sr_jax.sparsity import Masks, leaf_paths, masks_from_paths
from cka_sr_jax.training.checkpoints import Checkpoints
from cka_sr_jax.training.config import with_defaults
from cka_sr_jax.training.methods import LEARNED, model_weights


def load_variables(workdir: str | Path) -> dict[str, Any]:
    """{"params", "batch_stats"} of the weights that a run's result is of, for `model.apply`.

    With `eval.select` these are the best ones and not the last. Pruned weights are 0, also of a
    rule that learns its masks. A damaged checkpoint is passed over with a warning, and there is one
    where the last checkpoint of a finished run is missing.

    Raises:
      ValueError: `workdir` holds no run with an intact checkpoint.
    """
    return load_weights(workdir)[0]


def load_weights(
    workdir: str | Path, tell: Callable[[str], None] = warnings.warn
) -> tuple[dict[str, Any], Masks]:
    """(`load_variables(workdir)`, the masks of its parameters).

    The masks are like the parameters, with `optax.MaskedNode()` at leaves that stay dense; all are
    such after training without pruning.

    Args:
      tell: gets the sentences of `load_variables`' warnings.

    Raises:
      ValueError: as `load_variables`.
    """
    if not Path(workdir, "config.json").exists():
        raise ValueError(f"{workdir} holds no run: it has no config.json.")
    checkpoints = Checkpoints(workdir, tell=tell)
    arrays, config, step = checkpoints.newest()
    end = _finished_at(Path(workdir) / "result.json")
    if end is not None and end not in checkpoints.steps():
        tell(
            f"{workdir} has no checkpoint of step {end}, at which its result was measured: these "
            f"weights are of step {step}."
        )
    settings = with_defaults(config or {})
    chosen = "state" if settings["eval.select"] == "last" else "best"
    stored = traverse_util.unflatten_dict(arrays, sep=".")[chosen]
    variables = {name: stored.get(name, {}) for name in ("params", "batch_stats")}
    nested = traverse_util.unflatten_dict(settings, sep=".")
    sparsity, model = nested["sparsity"], nested["model"]
    if sparsity["rule"] in LEARNED:
        made = create_model(model["name"], 1, **model.get("options", {}))
        variables["params"] = model_weights(sparsity, variables["params"], made)
    masks = stored.get("opt_state", stored).get("masks", {})
    if sparsity["rule"] in LEARNED:
        masks = masks.get("weights", {})
    return variables, masks_from_paths(variables["params"], dict(leaf_paths(masks)))


def _finished_at(result: Path) -> int | None:
    """The last step of a finished run; None of one that diverged, or without a readable result."""
    try:
        stored = parse_stored(result.read_text())
        return None if "diverged" in stored else int(stored["steps"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
