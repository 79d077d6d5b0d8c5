"""Function calls in processes of their own, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from cka_sr_jax.training import ConfigError
from cka_sr_jax.training.signals import stop_signals

STOPPED = "stopped"
# Loaded once, in a process that each new one is a fork of: that saves each one or two seconds. It
# is safe as long as nothing there has made JAX look for devices.
PRELOADED = ["cka_sr_jax.sweeps.runner"]


class Died(str):
    """How a process ended that never reported what its call returned."""


def in_processes(calls: Mapping[str, Callable[[], Any]], jobs: int) -> Iterator[tuple[str, Any]]:
    """Run each call in a new process, at most `jobs` at a time.

    Each process may use 1/`jobs` of the cores and of an accelerator's memory, and takes its memory
    and its compiled code with it when it ends. It has the environment variables of this process as
    they are now, but for those that JAX reads when it is imported. When this process gets SIGTERM
    or Ctrl-C, or is killed, the others get SIGTERM, so that they can save and end.

    Args:
      calls: {name: function without arguments}, such as `functools.partial(f, x)`. Functions,
        arguments and results have to be picklable.

    Yields:
      (name, outcome) of each call as it ends: what it returned, `STOPPED` after a signal, or how
      its process `Died`.

    Raises:
      ConfigError: a call raised it; the other processes are stopped.
      SystemExit: this process got SIGTERM or Ctrl-C, and the others have ended.
    """
    waiting, told = list(calls), False
    running: dict[str, _Child] = {}
    with _shares_of_the_machine(jobs), stop_signals() as stop:
        try:
            while running or (waiting and not stop):
                while waiting and len(running) < jobs and not stop:
                    name = waiting.pop(0)
                    running[name] = _start(calls[name])
                if stop and not told:
                    for child in running.values():
                        child.process.terminate()
                    told = True
                # With a timeout, because a signal does not end the wait.
                ready = wait([child.receiver for child in running.values()], timeout=0.5)
                for name, child in list(running.items()):
                    if child.receiver in ready:
                        outcome = _receive(child)
                        del running[name]
                        if isinstance(outcome, ConfigError):
                            raise outcome
                        yield name, STOPPED if stop and isinstance(outcome, Died) else outcome
        finally:
            for child in running.values():
                child.process.terminate()
            for child in running.values():
                child.process.join()
        if stop:
            raise SystemExit("Stopped; the same command goes on from what was saved.")


@contextmanager
def _shares_of_the_machine(jobs: int) -> Iterator[None]:
    """Set the environment variables that tell a new process what it may use."""
    shares = {
        "NPROC": str(max(1, (os.cpu_count() or 1) // jobs)),  # XLA's threads
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.2f}",
    }
    before = {name: os.environ.get(name) for name in shares}
    os.environ |= shares
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Child(NamedTuple):
    process: BaseProcess
    receiver: Connection  # gets the call's outcome, or the end of the file if the process dies


def _start(call: Callable[[], Any]) -> _Child:
    context: Any = multiprocessing.get_context("spawn")  # JAX in use does not survive a fork
    if sys.platform == "linux":  # elsewhere a fork is not safe once system libraries are loaded
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(sender, dict(os.environ), call))
    with _interrupts_blocked():
        process.start()
    sender.close()  # the process now has the only one, so its death closes the pipe
    return _Child(process, receiver)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C; a process started meanwhile never gets it, and is told by SIGTERM instead."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send_outcome(
    sender: Connection, environment: Mapping[str, str], call: Callable[[], Any]
) -> None:
    """In the new process: make the call and send its outcome to the parent."""
    if hasattr(signal, "pthread_sigmask"):  # what it was forked from may have let them through
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = call()
    except ConfigError as error:
        outcome = error
    except (SystemExit, KeyboardInterrupt):  # raised after saving
        outcome = STOPPED
    with suppress(BrokenPipeError):  # the parent was killed, and nobody reads this
        sender.send(outcome)


def _end_with_parent() -> None:
    """Wait until the parent is gone, then ask this process to save and end.

    A parent that ends normally joins its processes first, so this acts only when it was killed.
    """
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _receive(child: _Child) -> Any:
    try:
        return child.receiver.recv()
    except (EOFError, OSError):
        child.process.join()
        code = child.process.exitcode or 0
        return Died(f"killed by signal {-code}" if code < 0 else f"ended with status {code}")
    finally:
        child.process.join()
        child.receiver.close()
