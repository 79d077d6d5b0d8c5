"""Train a sparse network.

  python launch.py --config=configs/quickstart/digits.py --config.FIELD=VALUE

The fields, with what they mean, are in cka_sr_jax/training/config.py.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "quickstart" / "digits.py"
FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "Where the run is kept; by default runs/ and the config file's name."
)
config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment's file, by default configs/quickstart/digits.py; --config.FIELD=VALUE too.",
)
flags.DEFINE_bool("grid", False, "Run every point of the config's grid, each in its own folder.")
flags.DEFINE_integer("grid_index", None, "Run this point of the grid only, counted from 0.")
flags.DEFINE_integer("jobs", 1, "Points of the grid that run side by side.")
flags.DEFINE_integer("replicas", 1, "Points that train together in one program, on an accelerator.")
flags.DEFINE_bool("retry", False, "Run the grid's failed points again.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it ends the program with one line and status 2."""
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    try:
        rest = FLAGS(argv)
        FLAGS.config.to_dict()  # a config file that could not be loaded says so only here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_explain(error, argv))
    if len(rest) > 1:
        fail(f"Unexpected argument {rest[1]!r}: flags start with --, see --help.")
    return rest


def main(argv: list[str]) -> None:
    """Run the experiment."""
    logging.set_verbosity(logging.ERROR)  # Orbax logs two dozen lines for each checkpoint
    from cka_sr_jax.sweeps import GridOptions, run_grid  # after the flags: importing jax takes time
    from cka_sr_jax.training import ConfigError
    from cka_sr_jax.workflows import run

    config = FLAGS.config
    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem
    workdir = Path(FLAGS.workdir or Path("runs") / name)
    try:
        if FLAGS.grid or FLAGS.grid_index is not None:
            _refuse_values_of_axes(config_flags.get_override_values(FLAGS["config"]))
            options = GridOptions(
                index=FLAGS.grid_index, jobs=FLAGS.jobs, replicas=FLAGS.replicas, retry=FLAGS.retry
            )
            states = run_grid(config, workdir, options)
            if any(state.startswith(("failed", "stopped", "running")) for state in states.values()):
                raise SystemExit(1)
        elif FLAGS.retry or FLAGS.jobs != 1 or FLAGS.replicas != 1:
            fail("--retry, --jobs and --replicas are for grids: add --grid.")
        elif config.grid or config.seeds:
            fail("This config is a grid of runs: add --grid, or --grid_index=K for one of them.")
        else:
            run(config, workdir)
    except ConfigError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted; the same command goes on from what was saved.") from None


def fail(message: str) -> NoReturn:
    """End with one line on stderr and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _refuse_values_of_axes(overrides: Iterable[str]) -> None:
    """End where the command line sets a field to a value which the grid would replace."""
    from cka_sr_jax.training.config import flatten

    axes = dict.fromkeys(flatten(FLAGS.config.grid), "grid.{}")
    if FLAGS.config.seeds:
        axes["seed"] = "seeds"
    for field in overrides:
        if field in axes:
            where = axes[field].format(field)
            fail(
                f"--config.{field} would do nothing: the grid sets {field}; say --config.{where} "
                "with a tuple of values, such as (1,)."
            )


def _explain(error: Exception, argv: list[str]) -> str:
    """What is wrong, naming the config field where it is one that does not exist."""
    from cka_sr_jax._errors import unknown
    from cka_sr_jax.training.config import default_config, flatten

    fields = flatten(default_config())
    missing = re.search(r"'(\w+)\\?'", str(error))
    if not isinstance(error, AttributeError | KeyError):
        missing = None
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1].startswith("grid."):
            if missing and missing[1] in match[1].split("."):
                return (
                    f"{match[1]} is no axis of this config's grid: an axis has to be in the config "
                    "file before its values can be set."
                )
        elif match and match[1] not in fields and not match[1].startswith("model.options."):
            return unknown("config field", match[1], fields)
    if missing and any(".model.options." in argument for argument in argv):
        return f"The config file sets no field {missing[1]!r} under model.options."
    if missing:
        return (
            f"The config file uses a field {missing[1]!r} that is not there; a group of the grid "
            "has to be made first, as in config.grid.penalty = ConfigDict({'beta': (0.0, 1e-4)})."
        )
    if isinstance(error, OSError):
        return f"The config file cannot be read: {str(error).splitlines()[-1].strip()}."
    return str(error)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines
    app.run(main, flags_parser=parse_flags)
