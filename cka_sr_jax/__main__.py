"""`cka-sr COMMAND ...` and `python -m cka_sr_jax COMMAND ...`: everything that runs by itself.

  cka-sr train --config=configs/quickstart/digits.py
  cka-sr table runs/rules --columns=sparsity.density

`cka-sr COMMAND --help` says more of each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from cka_sr_jax import __version__
from cka_sr_jax._errors import unknown

# {command: (the module whose `main` takes its arguments, arguments that come first, what it does)}
COMMANDS = {
    "train": ("cka_sr_jax.launch", [], "train the run of a config, as launch.py does"),
    "grid": ("cka_sr_jax.launch", ["--grid"], "train every point of a config's grid"),
    "table": ("cka_sr_jax.analysis.table", [], "make a table of many runs"),
    "paired": ("cka_sr_jax.analysis.paired", [], "compare runs that share a seed, in pairs"),
    "figures": ("cka_sr_jax.analysis.figures", [], "draw the curves and CKA maps of many runs"),
    "report": ("cka_sr_jax.analysis.report", [], "make one page that compares runs"),
    "export": ("cka_sr_jax.analysis.export", [], "write a run's weights for other programs"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments, by default those of the program, begin with."""
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command == "--version":
        print(f"cka-sr {__version__}")
    elif command in ("--help", "-h", "help"):
        with contextlib.suppress(BrokenPipeError):
            print(_help(), flush=True)
    elif command in COMMANDS:
        before = signal.signal(signal.SIGINT, _interrupt)
        try:
            _run(command, rest)
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        print(f"error: {unknown('command', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def _run(command: str, arguments: list[str]) -> None:
    module, first, _ = COMMANDS[command]
    sys.argv[0] = f"cka-sr {command}"  # as the command's own --help names it
    try:
        run = import_module(module).main
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {error.name} is not installed, and `cka-sr {command}` needs it: "
            "pip install 'cka_sr_jax[train]'."
        )
    run([*first, *arguments])


def _interrupt(*_: Any) -> NoReturn:
    """What Ctrl-C does in a command; `train` and `grid` replace it once a run takes care of it."""
    sys.stderr.write("Interrupted.\n")
    sys.stderr.flush()
    os._exit(130)


def _help() -> str:
    lines = [f"  {name:8} {purpose}" for name, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        ["Sparse neural-network training with CKA-SR.", "", "cka-sr COMMAND ...", "", *lines, "",
         "cka-sr COMMAND --help says more of each; cka-sr --version names this version."]
    )  # fmt: skip


if __name__ == "__main__":
    main()
