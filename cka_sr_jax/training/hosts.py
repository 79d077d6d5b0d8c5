"""Several processes, on one machine or on many, that train one run together.

Each has devices of its own, feeds them their share of every batch, and computes the same as all
others. The first alone reads and writes the work directory, and prints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cka_sr_jax.training.config import ConfigError

AUTO = "auto"
LONGEST_MESSAGE = 2000  # bytes of an error that one process tells the others
# Seconds after which a process that says nothing counts as dead; JAX's own 100 hold up the others.
DEAD_AFTER = 30
# How a batch system tells a process that it is one of several.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
NEEDED = {"SLURM_NTASKS": "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE": "OMPI_MCA_orte_hnp_uri"}


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Connect this process with those that it shall train with; call it before any computation.

    Without arguments it connects where Slurm (`srun`), Open MPI or a TPU pod announces several
    processes, and else does nothing.

    Args:
      coordinator: "host:port" of the first process, or "auto": JAX looks for the others itself.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ConfigError: some of the three are missing or wrong, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None) and not announced(environment):
        return
    if given == (None, None, None) or given == (AUTO, None, None):
        options: dict[str, Any] = {}
    elif coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"--coordinator={coordinator} --num_processes={num_processes} "
            f"--process_id={process_id}: give all three, such as --coordinator=localhost:1234 "
            "--num_processes=2 --process_id=0; or --coordinator=auto alone on a TPU pod."
        )
    elif not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} is not below --num_processes={num_processes}: give each "
            f"process a number of its own from 0 to {num_processes - 1}."
        )
    else:
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # others have their own
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=DEAD_AFTER)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes could not be connected ({' '.join(str(error).split())[:200]}): check "
            "the address of the first, and that all are started."
        ) from error


def announced(environment: Mapping[str, str]) -> bool:
    """Whether environment variables say that this is one of several processes."""
    for count in COUNTS:
        number = environment.get(count, "")
        if number.isdigit() and int(number) > 1 and NEEDED[count] in environment:
            return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or (
        "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )


def check_backend() -> None:
    """Check that JAX finds a device to compute on.

    Raises:
      ConfigError: it does not.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a message
        reason = " ".join(str(error).split())[:200] or "no such device"
        asked = os.environ.get("JAX_PLATFORMS")
        raise ConfigError(
            f"JAX finds no device for JAX_PLATFORMS={asked!r} ({reason}): unset it, or install jax "
            "for that device."
        ) from error


def is_first() -> bool:
    """Whether this process is the one that reads, writes and prints."""
    return jax.process_index() == 0


def of_first(function: Callable[[], Any]) -> Any:
    """What `function` returns on the first process, on all of them; the others do not call it.

    Args:
      function: returns what JSON can hold.

    Raises:
      ConfigError: on every process, where the first one's call raised it.
    """
    if jax.process_count() == 1:
        return function()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome["value"] = function()
        except ConfigError as error:
            outcome["error"] = str(error)
    outcome = _broadcast_json(outcome)
    if "error" in outcome:
        raise ConfigError(outcome["error"])
    return outcome["value"]


def agreed(function: Callable[[], Any]) -> Any:
    """What `function` returns on this process, once it has returned on all of them.

    Raises:
      ConfigError: on every process, where the call of one raised it: that of the lowest number.
    """
    if jax.process_count() == 1:
        return function()
    value, problem = None, b""
    try:
        value = function()
    except ConfigError as error:
        problem = (str(error) or "it cannot run").encode(errors="replace")[:LONGEST_MESSAGE]
    padded = np.zeros(LONGEST_MESSAGE, np.uint8)
    padded[: len(problem)] = np.frombuffer(problem, np.uint8)
    messages = [bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(padded)]
    for number, message in enumerate(messages):
        if message:
            text = message.decode(errors="replace")
            raise ConfigError(text if problem == message else f"process {number}: {text}")
    return value


def check_equal(values: dict[str, Any]) -> None:
    """Check that all processes have the same values, {name: what JSON can hold}.

    Raises:
      ConfigError: on every process, naming the first value in which one differs from process 0.
    """
    if jax.process_count() == 1:
        return
    mine = json.loads(json.dumps(values))
    first = _broadcast_json(values)

    def compare() -> None:
        for name in first | mine:
            if mine.get(name) != first.get(name):
                raise ConfigError(
                    f"{name} is {first.get(name)!r} on process 0 and {mine.get(name)!r} on process "
                    f"{jax.process_index()}: give all processes the same command, but for "
                    "--process_id."
                )

    agreed(compare)


def arrays_of_first(tree: Any) -> Any:
    """The first process's arrays, on all of them; the others pass arrays of equal shapes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def on_any(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is True on any process; all get the same answer."""
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags))
    return tuple(bool(flag) for flag in gathered.any(axis=0))


def _broadcast_json(content: Any) -> Any:
    data = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data), np.int32)))
    padded = np.zeros(size, np.uint8)
    padded[: len(data)] = data[:size]
    return json.loads(multihost_utils.broadcast_one_to_all(padded).astype(np.uint8).tobytes())
