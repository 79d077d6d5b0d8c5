"""Train a sparse network.

  python launch.py --config=configs/quickstart/digits.py --config.FIELD=VALUE

The fields, with what they mean, are in docs/config.md.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn


def leave(why: str, status: int) -> NoReturn:
    """End at once with one line, without waiting for threads, open files or other processes."""
    sys.stderr.write(f"{why}; the same command goes on from what was saved.\n")
    sys.stderr.flush()
    os._exit(status)


def interrupt(*_: Any) -> NoReturn:
    """What Ctrl-C does until a run takes care of it, also while modules load."""
    leave("Interrupted", 130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)

from absl import app, flags, logging  # noqa: E402 - Ctrl-C is one line here too
from ml_collections import config_flags  # noqa: E402

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "quickstart" / "digits.py"
FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "Where the run is kept; by default runs/ and the config file's name."
)
config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment's file, by default configs/quickstart/digits.py. --config.FIELD=VALUE changes "
    "a field, and --config.FIELD=none unsets an option of sparsity.",
)
flags.DEFINE_bool("grid", False, "Run every point of the config's grid, each in its own folder.")
flags.DEFINE_integer("grid_index", None, "Run this point of the grid only, counted from 0.")
flags.DEFINE_integer("jobs", 1, "Points of the grid that run side by side.")
flags.DEFINE_integer("replicas", 1, "Points that train together in one program, on an accelerator.")
flags.DEFINE_string(
    "coordinator", None, "host:port of the first of several processes that train together, or auto."
)
flags.DEFINE_integer("num_processes", None, "How many processes train together.")
flags.DEFINE_integer("process_id", None, "Which of these this one is, from 0.")
flags.DEFINE_bool("retry", False, "Run the grid's failed points again.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it ends the program with one line and status 2."""
    from cka_sr_jax.training import command_line

    if any(re.match(r"--?h(elp(full|short)?)?$", argument) for argument in argv):
        sys.modules["__main__"].__doc__ = f"{__doc__}\n{command_line.field_help()}\n"
        return FLAGS(argv)
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    rest, unset = command_line.take_unset(argv)
    files = command_line.config_files(rest)
    if len(files) > 1:
        fail(f"--config names {len(files)} files: give one.")
    for path in files:
        if problem := command_line.config_file_problem(path):
            fail(problem)
    try:
        rest = FLAGS(rest)
        for field in unset:
            FLAGS.config.update_from_flattened_dict({field: None})
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(command_line.override_problem(error, argv[1:]))
    if len(rest) > 1:
        fail(f"Unexpected argument {rest[1]!r}: flags start with --, see --help.")
    if FLAGS.grid or FLAGS.grid_index is not None:
        overrides = [*config_flags.get_override_values(FLAGS["config"]), *unset]
        if problem := command_line.axis_problem(FLAGS.config, overrides):
            fail(problem)
    return rest


def main(argv: list[str]) -> None:
    """Run the experiment."""
    # Orbax logs two dozen lines for each checkpoint, and raises what it logs as an error; where one
    # write fails, it prints of all others that their event loop is closed.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _without_closed_loops
    import jax

    from cka_sr_jax.sweeps import GridOptions, run_grid
    from cka_sr_jax.training import ConfigError, hosts
    from cka_sr_jax.workflows import run

    config = FLAGS.config
    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem
    workdir = FLAGS.workdir or Path("runs") / name
    try:
        hosts.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        if FLAGS.grid or FLAGS.grid_index is not None:
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
        interrupt()
    except OSError as error:  # a full disk, say
        leave(f"error: {error.filename or workdir}: {error.strerror or error}", 1)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        leave(f"Lost a process that trains with this one ({str(error).splitlines()[0][:150]})", 1)


def _without_closed_loops(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, RuntimeError):
        sys.__unraisablehook__(unraisable)


def fail(message: str) -> NoReturn:
    """End with one line on stderr and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines
    app.run(main, flags_parser=parse_flags)
