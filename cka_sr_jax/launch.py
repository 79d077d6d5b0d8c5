"""Train what a config file describes: `cka-sr train`, `cka-sr grid` and `launch.py`.

  python launch.py --config=configs/quickstart/digits.py --config.FIELD=VALUE

The fields, with what they mean, are in docs/config.md.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
# Where the configs are if neither the path nor its name is in the current folder.
HOME = Path(__file__).parents[1]
QUICKSTART = "configs/quickstart/digits.py"


def define_flags() -> None:
    """Define the flags of the command line, once."""
    if "workdir" in FLAGS:
        return
    flags.DEFINE_string(
        "workdir", None, "Where the run is kept; by default runs/ and the config file's name."
    )
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"The experiment's file, by default {QUICKSTART}. --config.FIELD=VALUE changes a field, "
        "and --config.FIELD=none unsets an option of sparsity.",
    )
    flags.DEFINE_bool("grid", False, "Run every point of the config's grid, in its own folder.")
    flags.DEFINE_integer("grid_index", None, "Run this point of the grid only, counted from 0.")
    flags.DEFINE_integer("jobs", 1, "Points of the grid that run side by side.")
    flags.DEFINE_integer(
        "replicas", 1, "Points that train together in one program, for very small networks."
    )
    flags.DEFINE_string(
        "coordinator", None,
        "host:port of the first of several processes that train together, or auto.",
    )  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "How many processes train together.")
    flags.DEFINE_integer("process_id", None, "Which of these this one is, from 0.")
    flags.DEFINE_bool("retry", False, "Run the grid's failed points again.")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Train, and end the program.

    Args:
      arguments: of the command line, without the program's name; None: those of the program.
    """
    signal.signal(signal.SIGINT, interrupt)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines
    try:
        define_flags()
    except flags.Error as error:  # it reads --flagfile already
        fail(str(error))
    arguments = sys.argv[1:] if arguments is None else arguments
    named = any(re.match("--?(config|flagfile)(=|$)", argument) for argument in arguments)
    note = "" if named else f"There was no --config, so this was {QUICKSTART}; see --help."
    app.run(partial(_run, note), argv=[sys.argv[0], *arguments], flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it ends the program with one line and status 2."""
    from cka_sr_jax.training import command_line
    from cka_sr_jax.training.fields import FIELDS

    if any(re.match(r"--?h(elp(full|short)?)?$", argument) for argument in argv):
        flags_help = FLAGS.module_help(sys.modules[__name__])
        print(f"{__doc__}\n{flags_help}\n\n{command_line.field_help()}")
        raise SystemExit
    argv = FLAGS.read_flags_from_files(argv, force_gnu=False)  # of --flagfile
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={QUICKSTART}", *argv[1:]]
    argv = [_at_home(argument) for argument in argv]
    rest, unset = command_line.take_unset(argv)
    files = command_line.config_files(rest)
    if len(files) > 1:
        fail(f"--config names {len(files)} files: give one.")
    new: dict[str, Any] = {}
    if files == [QUICKSTART] and not Path(QUICKSTART).exists():
        fail("Name a config: --config=FILE. Those of the repository come with a checkout of it.")
    for path in files:
        config = command_line.config_of_file(path)
        if isinstance(config, str):
            fail(config)
        rest, new = command_line.take_new_options(rest, config)
    sys.argv = rest  # which config_flags reads
    try:
        rest = FLAGS(rest)
        for field in unset:
            FLAGS.config.update_from_flattened_dict({field: FIELDS[field].default})
        for field, value in new.items():
            with FLAGS.config.model.options.unlocked():
                FLAGS.config.model.options[field.rpartition(".")[2]] = value
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(command_line.override_problem(error, argv[1:]))
    if len(rest) > 1:
        fail(f"Unexpected argument {rest[1]!r}: flags start with --, see --help.")
    if FLAGS.grid or FLAGS.grid_index is not None:
        overrides = [*config_flags.get_override_values(FLAGS["config"]), *unset, *new]
        if problem := command_line.axis_problem(FLAGS.config, overrides):
            fail(problem)
    return rest


def _at_home(argument: str) -> str:
    """`configs/...` of an argument, in this repository where the current folder has none."""
    match = re.fullmatch(r"((?:--?config=)?)(configs/[^:]*)(.*)", argument)
    if match and not Path(match[2]).exists() and (HOME / match[2]).exists():
        return f"{match[1]}{HOME / match[2]}{match[3]}"
    return argument


def _run(note: str, _: list[str]) -> None:
    # Orbax logs two dozen lines for each checkpoint, and raises what it logs as an error; where one
    # write fails, it prints of all others that their event loop is closed.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _without_closed_loops
    import jax

    from cka_sr_jax.training.signals import stop_numbers

    for number in set(stop_numbers()) - {signal.SIGINT}:
        signal.signal(number, terminate)
    from cka_sr_jax.sweeps import GridOptions, run_grid
    from cka_sr_jax.training import ConfigError, hosts
    from cka_sr_jax.training.compilation import keep_programs
    from cka_sr_jax.workflows import run

    config = FLAGS.config
    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem
    workdir = Path("runs") / name if FLAGS.workdir is None else FLAGS.workdir
    try:
        hosts.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        if not jax.distributed.is_initialized():  # those who train together compile together
            keep_programs()
        if FLAGS.grid or FLAGS.grid_index is not None:
            options = GridOptions(
                index=FLAGS.grid_index, jobs=FLAGS.jobs, replicas=FLAGS.replicas, retry=FLAGS.retry
            )
            states = run_grid(config, workdir, options)
            if any(state.startswith(("failed", "stopped", "running")) for state in states.values()):
                raise SystemExit(1)
        elif FLAGS.retry or FLAGS.jobs != 1 or FLAGS.replicas != 1:
            fail("--retry, --jobs and --replicas are for grids: add --grid.")
        elif config.get("grid") or config.get("seeds"):
            fail("This config is a grid of runs: add --grid, or --grid_index=K for one of them.")
        else:
            run(config, workdir)
            if note and hosts.is_first():
                print(note)
    except ConfigError as error:
        fail(str(error))
    except KeyboardInterrupt:
        interrupt()
    except OSError as error:  # a full disk, say
        leave(f"error: {error.filename or workdir}: {error.strerror or error}", 1)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if not jax.distributed.is_initialized():
            raise
        if not lost:
            traceback.print_exc()
            leave("This process failed, and the others end without it", 1)
        leave(f"Lost a process that trains with this one ({str(error).splitlines()[0][:150]})", 1)
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            leave("This process failed, and the others end without it", 1)
        raise


def leave(why: str, status: int) -> NoReturn:
    """End at once with one line, without waiting for threads, open files or other processes."""
    sys.stderr.write(f"{why}; the same command goes on from what was saved.\n")
    sys.stderr.flush()
    os._exit(status)


def interrupt(*_: Any) -> NoReturn:
    """What Ctrl-C does until a run takes care of it, also while modules load."""
    leave("Interrupted", 130)


def terminate(number: int, _: Any) -> NoReturn:
    """What a batch system's signal does until a run takes care of it."""
    leave("Stopped", 128 + number)


def fail(message: str) -> NoReturn:
    """End with one line on stderr and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        # Python's own end would wait for the others, which may wait for this process. The first
        # one is the last to end, or its end would cut off what the others say.
        time.sleep(jax.process_index() == 0)
        os._exit(2)
    raise SystemExit(2)


def _without_closed_loops(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, RuntimeError):
        sys.__unraisablehook__(unraisable)
