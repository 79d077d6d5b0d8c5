"""Grids of runs: every combination of some fields' values, each with every seed.

Each point is an ordinary run in a directory of its own, named after its values, so that a grid may
be killed and run again at any time: finished points are skipped and begun ones go on from their
checkpoint. More values may be given to an axis, and more seeds; a new axis renames the points, and
they all run again. Points that differ in `penalty.beta` alone share seed, initial weights, initial
masks and the order of the data.
"""

from __future__ import annotations

import copy
import fcntl
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax._errors import unknown
from cka_sr_jax.sweeps.replicas import replica_groups, train_together
from cka_sr_jax.training import ConfigError, default_config, loop
from cka_sr_jax.training.config import flatten, validate
from cka_sr_jax.training.signals import stop_signals
from cka_sr_jax.training.workdir import check_workdir
from cka_sr_jax.workflows import workflow_of

FAILURE = "failed.txt"


def grid_points(config: ConfigDict) -> dict[str, ConfigDict]:
    """{name: config of one run} for all combinations of `config.grid` and `config.seeds`.

    The fields are in alphabetical order and the last changes fastest, but for the seeds, which
    change fastest of all. A name reads "density=0.05,rule=rigl,seed=1".

    Raises:
      ConfigError: no grid and no seeds; a field that does not exist; values that are no tuple, of
        a wrong type, or that make a config which cannot work.
    """
    axes = flatten(config.grid)
    if config.seeds and "seed" in axes:
        raise ConfigError("grid.seed and seeds both say which seeds to run: give one of them.")
    if config.seeds:
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
            raise ConfigError(unknown("config field in the grid:", field, known))
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid.{field}={values!r} is no tuple of values: write for example ({values!r},)."
            )
        if any(values.index(value) != i for i, value in enumerate(values)):
            raise ConfigError(f"grid.{field}={tuple(values)} has a value twice: give each once.")
    names = _short_names(axes)
    points = {}
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values, strict=True))
        point = _point(config, overrides)
        name = ",".join(f"{names[field]}={_value_of(point, field)}" for field in axes)
        name = name.replace("/", "_").replace(" ", "")
        if name in points:
            raise ConfigError(f"two points of this grid would both be called {name}: drop one.")
        points[name] = point
    return points


def run_grid(
    config: ConfigDict,
    workdir: str | Path,
    *,
    index: int | None = None,
    jobs: int = 1,
    replicas: int = 1,
    retry: bool = False,
    console: Console | None = None,
) -> dict[str, str]:
    """Run the points of a grid that are not finished; {name: "finished", "failed", ...}.

    A point that fails, or whose own values cannot work, leaves failed.txt with the reason in its
    directory and is left alone from then on; the others go on. Where none of those that are left
    can work, as with data that are not there, that is no failure of theirs: it is found before the
    first one runs, and ends the grid. A point that another process is still running when this one
    has no more to do is "running elsewhere".

    Args:
      workdir: holds one directory for each point.
      index: run the point of this number only, counted from 0.
      jobs: processes side by side; on a CPU they share the cores. SIGTERM, Ctrl-C and the death
        of this process stop them all, each once it has saved a checkpoint.
      replicas: points that train together in one program where they differ in seed and beta alone;
        faster on accelerators. See `sweeps.replicas`.
      retry: run failed points again.

    Raises:
      ConfigError: as `grid_points`; an index outside the grid; fewer than 1 jobs or replicas, or
        more than 1 of both, or of either with an index; either with several devices; a point's
        directory that holds another config's run or a damaged one; models, data or optimizers with
        which no point can work; a `workdir` whose file system has no locks.
      SystemExit: stopped by a signal.
    """
    console = console or Console(soft_wrap=True)
    workdir = Path(workdir)
    points = grid_points(config)
    for name, count in (("jobs", jobs), ("replicas", replicas)):
        if count < 1:
            raise ConfigError(f"--{name}={count} is too small: run 1 or more.")
    if jobs > 1 and replicas > 1:
        raise ConfigError("--jobs and --replicas are two ways to share one machine: use one.")
    if replicas > 1 and len(jax.local_devices()) > 1:
        raise ConfigError(
            f"--replicas trains on one device and this machine shows {len(jax.local_devices())}: "
            "show it one, such as with CUDA_VISIBLE_DEVICES=0, and start one process for each."
        )
    if index is not None:
        if jobs > 1 or replicas > 1:
            raise ConfigError(
                "--grid_index runs one point, alone: leave out --jobs and --replicas, or it."
            )
        if not 0 <= index < len(points):
            raise ConfigError(
                f"--grid_index={index} is outside this grid of {len(points)} points: "
                f"use 0 to {len(points) - 1}."
            )
        name = list(points)[index]
        points = {name: points[name]}
    for name, point in points.items():
        folder = workdir / name
        if not (folder / FAILURE).exists() or (folder / "config.json").exists():
            check_workdir(point, folder)
    states: dict[str, str] = {}
    to_run, start = [n for n in points if not _ended(workdir / n, retry)], time.monotonic()
    if replicas > 1:
        ended = _run_together(points, workdir, replicas, retry, console)
    else:
        ended = _run_points(points, workdir, jobs, retry, console)
    for name, state in ended:
        states[name] = state
        line = f"[{len(states)}/{len(points)}] {name}: {state}"
        # Of all processes that run this grid: what has finished since this one started.
        finished = {n for n in to_run if (workdir / n / "result.json").exists()}
        left = len([n for n in to_run if n not in finished and n not in states])
        # The first of several side by side says little yet, and replicas end all at once.
        if left and len(finished) >= jobs and replicas == 1:
            seconds = (time.monotonic() - start) / len(finished) * left
            line += f", about {_duration(seconds)} left"
        console.print(line, highlight=False, markup=False)
    for name, state in states.items():
        if state == "running elsewhere":  # it may have ended since
            states[name] = _ended(workdir / name, retry=False) or state
    counts = Counter(state.split(":")[0] for state in states.values())
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if counts["failed before"]:
        console.print("With --retry the failed ones run again.")
    if counts["running elsewhere"]:
        console.print("Run this again once the others have ended: they may not finish.")
    return states


def _duration(seconds: float) -> str:
    """As in "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _check_shared(points: Mapping[str, ConfigDict], workdir: Path, jobs: int, retry: bool) -> None:
    """Raise ConfigError where no point that is left can work, or several would share devices.

    Where one can work, the others that cannot are failures of their own; a last one that cannot is
    told from a mistake in the command by nothing, and ends the grid.
    """
    left = {n: config for n, config in points.items() if not _ended(workdir / n, retry)}
    if left and jobs > 1 and (count := len(jax.local_devices())) > 1:
        raise ConfigError(
            f"each of --jobs={jobs} processes would take all {count} devices: give this command "
            "instead to one process for each device, such as with CUDA_VISIBLE_DEVICES=0; with "
            "one --workdir they share the points."
        )
    errors: dict[str, tuple[str, ConfigError]] = {}
    for name, config in left.items():
        apart_from_seed = str(sorted((flatten(config) | {"seed": None}).items()))
        if apart_from_seed in errors:
            continue
        folder = workdir / name
        if not (folder / "config.json").exists():
            folder /= "new"  # not there: failed.txt goes before the point runs again
        try:
            check_workdir(config, folder)
            workflow_of(config).prepare(config)
            return
        except ConfigError as error:
            errors[apart_from_seed] = name, error
    if errors:
        name, first = next(iter(errors.values()))
        if len({str(error) for _, error in errors.values()}) == 1:
            raise first
        raise ConfigError(f"no point can work; {name}: {first}") from first


def _run_points(
    points: Mapping[str, ConfigDict], workdir: Path, jobs: int, retry: bool, console: Console
) -> Iterator[tuple[str, str]]:
    """(name, state) of each point as it ends."""
    if jobs == 1 or len(points) <= 1:
        _check_shared(points, workdir, 1, retry)
        for name, config in points.items():
            yield name, run_point(config, workdir, name, retry, console)
            jax.clear_caches()  # each point compiles its own step
        return
    # What each process takes: XLA's threads, and the share of an accelerator's memory.
    shares = {
        "NPROC": str(max(1, (os.cpu_count() or 1) // jobs)),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.2f}",
    }
    before = {name: os.environ.get(name) for name in shares}
    os.environ |= shares
    try:
        # In a process too: this one must leave the accelerator to the others. If that process
        # dies, so do those of the points, and they say why.
        list(_in_processes({"the check": (_check_shared, points, workdir, jobs, retry)}, 1))
        calls = {n: (run_point, config, workdir, n, retry) for n, config in points.items()}
        for name, state in _in_processes(calls, jobs):
            if isinstance(state, Died):
                state = _record_death(workdir, name, str(state))
            yield name, state
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Died(str):
    """How a process ended that did not say itself how its call did."""


def _in_processes(calls: Mapping[str, tuple[Any, ...]], jobs: int) -> Iterator[tuple[str, Any]]:
    """(name, what it returned) of each call as it ends, or "stopped", or how its process Died.

    Args:
      calls: {name: (function, *arguments)}. Each has a process of its own: its memory and its
        compiled steps go with it.

    Raises:
      ConfigError: of a call; the others are stopped.
      SystemExit: SIGTERM or Ctrl-C came; the processes were told and have ended.
    """
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    waiting, told = list(calls), False
    running: dict[str, tuple[Any, Connection]] = {}
    with stop_signals() as stop:
        try:
            while running or (waiting and not stop):
                while waiting and len(running) < jobs and not stop:
                    name = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_send_outcome, args=(sender, *calls[name]))
                    with _interrupts_held():  # the process is told by SIGTERM
                        process.start()
                    sender.close()  # so that the receiver sees the end of a process that dies
                    running[name] = process, receiver
                if stop and not told:
                    for process, _ in running.values():
                        process.terminate()
                    told = True
                # Not for ever: a signal does not end the wait.
                ready = wait([receiver for _, receiver in running.values()], timeout=0.5)
                for name, (process, receiver) in list(running.items()):
                    if receiver in ready:
                        outcome = _receive_outcome(process, receiver)
                        del running[name]
                        if isinstance(outcome, ConfigError):
                            raise outcome
                        yield name, "stopped" if stop and isinstance(outcome, Died) else outcome
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join()
        if stop:
            raise SystemExit("Stopped; the same command goes on from what was saved.")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end; a process that is started meanwhile never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send_outcome(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    """Call it in this process and send what became of it to the one that started this."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = function(*arguments)
    except ConfigError as error:
        outcome = error
    except (SystemExit, KeyboardInterrupt):  # it has saved what it could
        outcome = "stopped"
    with suppress(BrokenPipeError):  # the grid was killed: the point's directory says it all
        sender.send(outcome)


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone, and then ask this one to save and end.

    It is joined before it is gone, unless it was killed.
    """
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _receive_outcome(process: Any, receiver: Connection) -> Any:
    try:
        return receiver.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode
        return Died(f"killed by signal {-code}" if code < 0 else f"ended with status {code}")
    finally:
        process.join()
        receiver.close()


def _record_death(workdir: Path, name: str, reason: str) -> str:
    with _lock(workdir / ".locks" / name) as free:
        if free:  # or another process has taken over already
            (workdir / name).mkdir(parents=True, exist_ok=True)
            (workdir / name / FAILURE).write_text(f"{reason}\n")
    return f"failed: {reason}"


def _run_together(
    points: Mapping[str, ConfigDict], workdir: Path, replicas: int, retry: bool, console: Console
) -> Iterator[tuple[str, str]]:
    """(name, state) of each point as it ends, those that can being trained together."""
    _check_shared(points, workdir, 1, retry)
    pending = {
        name: config
        for name, config in points.items()
        if not _ended(workdir / name, retry) and workflow_of(config) is loop
    }
    for group in replica_groups(pending, workdir, replicas):
        with ExitStack() as locks:
            free = {
                name: pending[name]
                for name in group
                if locks.enter_context(_lock(workdir / ".locks" / name))
                and not _ended(workdir / name, retry)
            }
            # Again, under the locks: another process may have gone on with some of them.
            for part in replica_groups(free, workdir, replicas):
                for name in part:
                    (workdir / name / FAILURE).unlink(missing_ok=True)
                try:
                    if len(part) > 1:
                        train_together({workdir / name: free[name] for name in part}, console)
                except Exception as error:  # such as too little memory; each may do on its own
                    reason = " ".join(str(error).split())
                    console.print(f"Not together: {reason}", highlight=False, markup=False)
        for name in group:  # evaluates and reports what has been trained
            yield name, run_point(pending[name], workdir, name, retry)
        jax.clear_caches()
    rest = {name: config for name, config in points.items() if name not in pending}
    yield from _run_points(rest, workdir, 1, retry, console)


def _ended(folder: Path, retry: bool) -> str:
    """How the point ended before; "" if it has to run. Its config has been checked."""
    failure = folder / FAILURE
    if failure.exists() and not retry:
        return f"failed before: {''.join(failure.read_text().splitlines()[:1])}"
    return "finished before" if (folder / "result.json").exists() else ""


def run_point(
    config: ConfigDict, workdir: Path, name: str, retry: bool, console: Console | None = None
) -> str:
    """Run one point in `workdir`/`name` unless it has ended; what became of it."""
    folder = workdir / name
    with _lock(workdir / ".locks" / name) as free:
        if not free:
            return "running elsewhere"
        if ended := _ended(folder, retry):
            return ended
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            result = workflows.run(config, folder, console or Console(quiet=True))
        except Exception as error:  # whatever it is, the other points go on
            folder.mkdir(parents=True, exist_ok=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            (folder / FAILURE).write_text(f"{reason}\n\n{traceback.format_exc()}")
            return f"failed: {reason}"
        test = result.get("test", {})
        if "accuracy" not in test:
            return "finished"
        diverged = ", diverged" if test.get("loss", 0.0) is None else ""
        return f"finished: test accuracy {test['accuracy']:.4f}{diverged}"


def _point(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    point = copy.deepcopy(config)
    point.grid, point.seeds = ConfigDict(), ()
    try:
        with point.unlocked():  # for model.options, which hold what the config file sets
            point.update_from_flattened_dict(overrides)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"the grid's point {dict(overrides)} is wrong: {error}") from error
    # As for one device: the process that starts others must not take the accelerator itself.
    validate(point, devices=1)
    return point


def _value_of(point: ConfigDict, field: str) -> Any:
    """As the point has it: 0 and 0.0 are one value of a field of floats."""
    value = flatten(point)[field]
    return tuple(value) if isinstance(value, list) else value


def _short_names(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields' last parts where those differ, else the whole."""
    last = {field: field.rpartition(".")[2] for field in fields}
    counts = Counter(last.values())
    return {field: name if counts[name] == 1 else field for field, name in last.items()}


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the file; freed when the process ends, however it ends.

    Raises:
      ConfigError: the file cannot be made or locked.
    """
    with ExitStack() as open_file:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open_file.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be locked ({error.strerror}): name a --workdir that can be written "
                "to, on a file system that has locks."
            ) from error
        yield free
