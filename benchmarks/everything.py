"""The benchmarks of docs/speed.md that need no accelerator, one after the other, on one page.

  python benchmarks/everything.py [--data_dir=FOLDER] [--output=runs/benchmarks.md]

FOLDER holds the TFDS set fashion_mnist (docs/running.md, "Data sets"); without it whole runs are
left out. Each script is a process of its own, and the page has what it printed, with the seconds
that it took. Takes some 15 minutes on two cores; run nothing else beside it.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "cka_penalty.py", "compact.py", "sparse_inference.py", "mask_update.py", "selection.py",
    "replicas.py", "train_step.py", "tokens.py",
)  # fmt: skip


def heading() -> str:
    """Commit, machine and versions."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
        )
        commit = found.stdout.strip() or "unknown"
    except OSError:  # no git
        commit = "unknown"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jaxlib", "flax", "optax", "numpy"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    load = f"load {os.getloadavg()[0]:.1f} before the start"
    return f"# Benchmarks at commit {commit}\n\n{machine}, {versions}; {load}\n"


def section(command: list[str]) -> str:
    """What a script prints, below its command.

    Raises:
      SystemExit: the script fails.
    """
    print(" ".join(command), file=sys.stderr, flush=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"error: {command[0]} ended with status {done.returncode}.")
    took = time.perf_counter() - began
    shown = " ".join(["python", f"benchmarks/{command[0]}", *command[1:]])
    return f"## {command[0]}\n\n`{shown}`, {took:.0f} s:\n\n```text\n{done.stdout.rstrip()}\n```\n"


def main() -> None:
    """Write the page, again after each script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", help="folder of TFDS sets, for whole runs")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.md"))
    args = parser.parse_args()
    commands = [[name] for name in SCRIPTS]
    if args.data_dir:
        commands.append(["whole_run.py", f"--data_dir={Path(args.data_dir).resolve()}"])
    parts = [heading()]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        parts.append(section(command))
        args.output.write_text("\n".join(parts))
    print(f"Page: {args.output}")


if __name__ == "__main__":
    main()
