"""What a config can describe: one ordinary run, or an experiment of several trainings.

`run(config, workdir)` does whatever the config says. A new workflow is a module here with the same
three functions as `training.loop`, `prepare`, `run` and `show_finished`, and a line in
`workflow_of`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.training import loop
from cka_sr_jax.training.config import (
    ConfigError,
    check_fields,
    flatten,
    is_layer_sparsity,
    validate,
)
from cka_sr_jax.training.hosts import agreed, check_backend, check_equal, is_first, of_first
from cka_sr_jax.training.locks import claim
from cka_sr_jax.training.workdir import check_workdir, local_folder
from cka_sr_jax.workflows import layer_sparsity, lottery

__all__ = ["devices_of", "run", "workflow_of"]

# Fields in which processes that train together may differ.
OWN = ("data.dir", "data.cache_dir", "data.workers")


def workflow_of(config: ConfigDict) -> ModuleType:
    """The module that does what `config` describes, with

    prepare(config) -> plan                      builds and checks all; nothing is written
    run(plan, workdir, console) -> result        does it
    show_finished(workdir, console) -> result    prints a finished one; None for any other
    """
    if is_layer_sparsity(config):
        return layer_sparsity
    return lottery if config.lottery.rounds else loop


def devices_of(config: ConfigDict) -> int:
    """How many devices train what `config` describes: layer sparsity takes one, all else all."""
    return 1 if workflow_of(config) is layer_sparsity else len(jax.devices())


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Do what `config` describes in `workdir`; returns the content of its result.json.

    A finished run is left as it is. One that was interrupted goes on from its newest checkpoint; an
    experiment of layer sparsity starts again.

      from cka_sr_jax.training import default_config
      config = default_config()
      config.model.options.hidden = (256, 256)
      result = run(config, "runs/first")
      result["test"]["accuracy"]

    Raises:
      ConfigError: the config cannot work, or `workdir` belongs to another one or is in use by
        another process; nothing is written.
      SystemExit: at SIGTERM, SIGHUP or Ctrl-C, once a checkpoint is saved.
    """
    check_backend()
    console = console or Console(soft_wrap=True)
    if not is_first():
        console = Console(quiet=True)

    def check() -> None:
        check_fields(config)
        validate(config, devices_of(config))

    folder = agreed(lambda: local_folder(workdir))
    agreed(check)
    check_equal({k: v for k, v in flatten(config).items() if k not in OWN})
    workflow = workflow_of(config)
    if jax.process_count() > 1 and workflow is not loop:
        raise ConfigError(
            f"{jax.process_count()} processes were started together, and "
            f"{workflow.__name__.rpartition('.')[2]} trains in one: start one."
        )
    of_first(lambda: check_workdir(config, folder))
    with contextlib.ExitStack() as stack:
        of_first(lambda: _claim(folder, stack))
        of_first(lambda: check_workdir(config, folder))  # again, now that nobody changes it
        finished = of_first(lambda: workflow.show_finished(folder, console))
        if finished is not None:
            return finished
        plan = agreed(lambda: workflow.prepare(config))
        return workflow.run(plan, folder, console)


def _claim(folder: Path, stack: contextlib.ExitStack) -> None:
    """Claim the work directory until the stack ends."""
    if not stack.enter_context(claim(folder)):
        raise ConfigError(
            f"--workdir={folder} is in use by another process: wait until it has ended, or name "
            "another."
        )
