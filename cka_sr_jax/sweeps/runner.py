"""Run the points of a grid.

Each point is an ordinary run with a directory of its own, named after its values. A grid may be
killed and started again at any time: finished points are skipped, and begun ones go on from their
checkpoint. An axis may get more values later, and the grid more seeds; a new axis renames all
points, so they all run again. Points that differ in `penalty.beta` alone share their seed, initial
weights, initial masks and the order of the data.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.report import say
from cka_sr_jax.sweeps.estimate import TimeLeft, duration
from cka_sr_jax.sweeps.options import GridOptions, choose_points
from cka_sr_jax.sweeps.points import grid_points
from cka_sr_jax.sweeps.processes import Died, in_processes
from cka_sr_jax.sweeps.replicas import replica_groups, train_together
from cka_sr_jax.sweeps.states import (
    ELSEWHERE,
    check_folder,
    check_no_run,
    ended,
    forget_failure,
    record_failure,
)
from cka_sr_jax.training import ConfigError, loop
from cka_sr_jax.training.compilation import keep_programs, programs_are_kept
from cka_sr_jax.training.config import check_fields, flatten, validate
from cka_sr_jax.training.locks import claim
from cka_sr_jax.training.workdir import local_folder
from cka_sr_jax.workflows import devices_of, workflow_of


def run_grid(
    config: ConfigDict,
    workdir: str | Path,
    options: GridOptions | None = None,
    console: Console | None = None,
) -> dict[str, str]:
    """Run all points of a grid that have not finished.

      states = run_grid(config, "runs/grid", GridOptions(jobs=2))

    A point that fails leaves failed.txt with the reason in its directory; the others go on, and it
    is skipped from then on. If no remaining point can run (say, the data is missing), the grid
    stops before it starts and records no failures. Several processes may run one grid: each takes
    the points that nobody else is running.

    Before any point runs, all fields of the grid and its options are checked, and points are
    prepared (data read, step traced) until one can run. Mistakes of the other points show when
    these run: what only data or tracing tells, and masks that a pruner cannot choose.

    Args:
      workdir: gets one directory for each point.

    Returns:
      {name of the point: its state}. A state begins with "finished", "failed" or "stopped", or is
      "running elsewhere" if another process still runs the point when the grid ends.

    Raises:
      ConfigError: as `grid_points`; options that contradict each other or this machine; a point's
        directory that is damaged or holds another config's run; no remaining point can run;
        `workdir` holds a run itself, cannot be written or has no file locks.
      SystemExit: this process got SIGTERM or Ctrl-C, and all runs have saved a checkpoint.
    """
    options = options or GridOptions()
    console = console or Console(soft_wrap=True)
    if jax.distributed.is_initialized():  # asking for the processes would take the accelerator
        raise ConfigError(
            f"{jax.process_count()} processes were started together, and a grid runs its points "
            "in one process each: start this command on its own."
        )
    folder = local_folder(workdir)
    grid = _Grid(choose_points(grid_points(config), options), folder, options, console)
    check_no_run(grid.workdir)
    for name, point in grid.points.items():
        check_folder(point, grid.folder(name))
    time_left = TimeLeft(map(grid.folder, grid.remaining()), options.jobs)
    if options.jobs > 1 and len(grid.points) > 1:
        outcomes = _run_side_by_side(grid)
    else:
        run = _run_together if options.replicas > 1 else _run_in_turn
        outcomes = run(grid, _prepare_first(grid.remaining()))
    states: dict[str, str] = {}
    for name, state in outcomes:
        states[name] = state
        line = f"[{len(states)}/{len(grid.points)}] {name}: {state}"
        seconds = time_left.seconds(states)
        if seconds is not None and options.replicas == 1:  # replicas all end at once
            line += f", about {duration(seconds)} left"
        say(console, line)
    for name, state in states.items():
        if state == ELSEWHERE:  # it may have ended since
            states[name] = ended(grid.folder(name)) or state
    counts = Counter(state.split(":")[0] for state in states.values())
    say(console, ", ".join(f"{count} {state}" for state, count in counts.items()))
    if counts["failed before"]:
        say(console, "Add --retry to run the failed points again.")
    if counts[ELSEWHERE]:
        say(
            console,
            "Other processes still run some points: once they have ended, run this command again, "
            "in case they did not finish.",
        )
    return states


def run_point(
    config: ConfigDict,
    folder: Path,
    retry: bool = False,
    console: Console | None = None,
    plan: Any = None,
) -> str:
    """Run one point, unless it has ended or another process runs it; returns its state.

    Args:
      plan: the point's, if it has been prepared already.
    """
    with claim(folder) as claimed:
        if not claimed:
            return ELSEWHERE
        if before := ended(folder, retry):
            return before
        forget_failure(folder)
        try:
            check_folder(config, folder)
            plan = _prepare(config) if plan is None else plan
            result = workflow_of(config).run(plan, folder, console or Console(quiet=True))
        except Exception as error:  # whatever it is, the other points go on
            reason = " ".join(str(error).split()) or type(error).__name__
            return record_failure(folder, reason, traceback.format_exc())
    test = result.get("test", {})
    if "accuracy" not in test:
        return "finished"
    diverged = ", diverged" if test.get("loss", 0.0) is None else ""
    return f"finished: test accuracy {test['accuracy']:.4f}{diverged}"


class _Grid(NamedTuple):
    """The points to look at, and how to run them."""

    points: Mapping[str, ConfigDict]
    workdir: Path
    options: GridOptions
    console: Console

    def folder(self, name: str) -> Path:
        return self.workdir / name

    def remaining(self) -> dict[str, ConfigDict]:
        """The points that have not ended."""
        retry = self.options.retry
        return {n: config for n, config in self.points.items() if not ended(self.folder(n), retry)}


def _run_in_turn(grid: _Grid, plans: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, state) of each point as it ends, all in this process.

    Args:
      plans: of points that have been prepared already, by name. Each is taken out when it runs.
    """
    for name, config in grid.points.items():
        plan = plans.pop(name, None)
        yield name, run_point(config, grid.folder(name), grid.options.retry, grid.console, plan)
        jax.clear_caches()  # of this process; those on the disk stay


def _run_side_by_side(grid: _Grid) -> Iterator[tuple[str, str]]:
    """(name, state) of each point as it ends, each in a process of its own."""
    jobs, retry = grid.options.jobs, grid.options.retry
    # The check has its own process, because this one must leave the accelerator to the others.
    # If it dies, the points' processes die too, and their failures say why.
    check = partial(_check_side_by_side, grid.remaining(), jobs)
    for _ in in_processes({"check": check}, 1):
        pass
    calls = {
        name: partial(_run_in_process, config, grid.folder(name), retry, programs_are_kept())
        for name, config in grid.points.items()
    }
    for name, state in in_processes(calls, jobs):
        if isinstance(state, Died):
            reason, state = state, f"failed: {state}"
            with claim(grid.folder(name)) as claimed:
                if claimed:  # else another process has taken over
                    record_failure(grid.folder(name), reason)
        yield name, state


def _run_in_process(config: ConfigDict, folder: Path, retry: bool, keeps_programs: bool) -> str:
    """`run_point` in a process that was started for it."""
    if keeps_programs:
        keep_programs()
    return run_point(config, folder, retry)


def _check_side_by_side(remaining: Mapping[str, ConfigDict], jobs: int) -> None:
    """Raise ConfigError if no point can run, or the processes would all take the same devices."""
    count = len(jax.local_devices())
    if remaining and count > 1:
        raise ConfigError(
            f"each of the --jobs={jobs} processes would take all {count} devices: drop --jobs and "
            "start this command once for each device, for example with CUDA_VISIBLE_DEVICES=0; "
            "processes with the same --workdir share the points."
        )
    _prepare_first(remaining)


def _run_together(grid: _Grid, plans: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """As `_run_in_turn`, after training together the points that can."""
    retry, most = grid.options.retry, grid.options.replicas
    pending = {n: config for n, config in grid.remaining().items() if workflow_of(config) is loop}
    for group in replica_groups(pending, grid.workdir, most):
        with ExitStack() as claims:
            free = {
                name: pending[name]
                for name in group
                if claims.enter_context(claim(grid.folder(name)))
                and not ended(grid.folder(name), retry)
            }
            # Grouped again: before the claims, another process may have gone on with some of them.
            for part in replica_groups(free, grid.workdir, most):
                if len(part) == 1:
                    continue
                try:
                    for name in part:
                        forget_failure(grid.folder(name))
                        check_folder(free[name], grid.folder(name))
                        plans[name] = plans.get(name) or _prepare(free[name])
                    train_together({grid.folder(n): plans[n] for n in part}, grid.console)
                except Exception as error:  # too little memory, say: each may still run alone
                    reason = " ".join(str(error).split())
                    say(grid.console, f"Not together: {reason}")
        for name in group:  # evaluates what is trained, and trains what is not
            plan = plans.pop(name, None)
            yield name, run_point(pending[name], grid.folder(name), retry, plan=plan)
        jax.clear_caches()
    others = {name: config for name, config in grid.points.items() if name not in pending}
    yield from _run_in_turn(grid._replace(points=others), plans)


def _prepare_first(points: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """{name: plan} of the first point that can run; empty if there are no points.

    Raises:
      ConfigError: no point can run. The mistake is then most likely one that they share.
    """
    errors: dict[str, tuple[str, ConfigError]] = {}
    for name, config in points.items():
        apart_from_seed = str(sorted((flatten(config) | {"seed": None}).items()))
        if apart_from_seed in errors:
            continue
        try:
            return {name: _prepare(config)}
        except ConfigError as error:
            errors[apart_from_seed] = name, error
    if errors:
        name, first = next(iter(errors.values()))
        if len({str(error) for _, error in errors.values()}) == 1:
            raise first
        raise ConfigError(f"no point can run; {name}: {first}") from first
    return {}


def _prepare(config: ConfigDict) -> Any:
    """The plan of a point, for this machine's devices."""
    check_fields(config)
    validate(config, devices_of(config))
    return workflow_of(config).prepare(config)
