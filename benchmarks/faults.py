"""What becomes of a run that is killed, damaged, short of disk, or asked for what cannot be?

  python benchmarks/faults.py --kills=20 --damages=60 --inputs=100

A small run on digits is the reference. Then, with random places and times:

  kills     a run gets SIGKILL, SIGTERM, SIGINT or SIGHUP, and its command is given again
  damages   a bit of a file of the stored run flips, or a file is cut, emptied or removed, or a
            folder is; then the run's command is given again, and its weights are loaded
  disk      the disk fills up, then has room again (where root may mount a tmpfs; else left out)
  inputs    a field of the config has a value that it cannot take

Prints for each kind how many trials ended exactly as the reference, bit for bit; were refused in
one line; lost their run; ended otherwise without a word; printed a traceback; or hung.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from output import print_table

from cka_sr_jax.training import Checkpoints

ROOT = Path(__file__).parents[1]
RUN = (
    "--config.train.steps=300", "--config.train.log_every=10", "--config.checkpoint.every=20",
    "--config.model.options.hidden=(32,32,32)", "--config.sparsity.rule=rigl",
    "--config.sparsity.density=0.2", "--config.sparsity.update_every=10",
)  # fmt: skip
OUTCOMES = ("trials", "exact", "refused", "lost", "silent", "traceback", "hung")
SECONDS = 120  # after which a command counts as hung
WRONG = {
    int: ("x", "1.5", "-7", "99999999999999999999"),
    float: ("x", "nan", "-1", "1e400"),
    str: ("no-such-thing", ""),
    bool: ("maybe", "2"),
    tuple: ("(-1,)", "('x',)", "7"),
}


def command(workdir: Path, *arguments: str) -> list[str]:
    """The command line of the run."""
    return [sys.executable, "launch.py", f"--workdir={workdir}", *RUN, *arguments]


def launch(workdir: Path, *arguments: str) -> tuple[int | None, str]:
    """Status and output of the command; status None where it hung."""
    try:
        done = subprocess.run(
            command(workdir, *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def weights(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays of the run's newest intact checkpoint."""
    arrays = Checkpoints(workdir, tell=lambda _: None).arrays()
    return {path: array for path, array in arrays.items() if path != "seconds"}


def outcome(status: int | None, output: str, workdir: Path, expected: dict) -> str:
    """How a command ended, once it has ended for good."""
    if status is None:
        return "hung"
    if "Traceback" in output:
        return "traceback"
    if status != 0:
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        return "refused" if len(lines) == 1 else "lost"
    found = weights(workdir)
    same = found.keys() == expected.keys() and all(
        np.array_equal(found[path], expected[path]) for path in expected
    )
    complete = (workdir / "result.json").exists()
    return "exact" if same and complete else "silent"


def kill(rng: random.Random, folder: Path, expected: dict, seconds: float) -> str:
    """A signal at a random time, and the command once more."""
    workdir = folder / "killed"
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(rng.uniform(0.1, seconds))
    process.send_signal(getattr(signal, rng.choice(["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])))
    try:
        first, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "hung"
    status, output = launch(workdir)
    # Before the first line of launch.py, Python itself answers Ctrl-C with a traceback.
    early = "frozen importlib" in first or "site.py" in first
    return outcome(status, output if early else first + output, workdir, expected)


def damage(rng: random.Random, folder: Path) -> str:
    """Damage one file or folder of a stored run; returns what was done."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "tensorboard" not in p.parts]
    path = rng.choice(files)
    kind = rng.choice(["flip", "flip", "flip", "cut", "empty", "remove", "remove folder"])
    content = bytearray(path.read_bytes())
    if kind == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == "remove":
        path.unlink()
    elif kind == "remove folder" and path.parent != folder:
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(b"")
    return f"{kind} {path.relative_to(folder)}"


def damaged(rng: random.Random, folder: Path, reference: Path, expected: dict) -> str:
    """Damage a copy of the finished run, and give its command again."""
    workdir = folder / "damaged"
    shutil.copytree(reference, workdir)
    if rng.random() < 0.7:
        (workdir / "result.json").unlink()  # or the run would be complete, and nothing be read
    what = damage(rng, workdir)
    status, output = launch(workdir)
    found = outcome(status, output, workdir, expected)
    if found not in ("exact", "refused"):
        print(f"{what}: {found}: {output[-300:]}")
    return found


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    """A file system of this size; None where this user may mount none."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def full_disk(rng: random.Random, folder: Path, expected: dict) -> str | None:
    """The disk fills up at a random place, then has room."""
    with small_disk(folder, rng.randrange(40, 600)) as disk:
        if disk is None:
            return None
        status, output = launch(disk / "run")
        if status is None:
            return "hung"
        said = [line for line in output.splitlines() if "No space left" in line]
        if "Traceback" in output or (status != 0 and len(said) != 1):
            print(output[-500:])
            return "traceback" if "Traceback" in output else "silent"
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        return outcome(*launch(disk / "run"), disk / "run", expected)


def wrong_input(rng: random.Random, folder: Path) -> str:
    """A field with a value that it cannot take, checked as launch.py checks it."""
    from cka_sr_jax.training.fields import FIELDS

    while True:
        name = rng.choice(list(FIELDS))
        kind = FIELDS[name].kind
        value = rng.choice(WRONG.get(kind, ("x",)))
        if kind is not dict and FIELDS[name].problem(name, value):
            break
    workdir = folder / "input"
    status, output = launch(workdir, f"--config.{name}={value}")
    if workdir.exists():
        return "lost"
    found = outcome(status, output, workdir, {}) if status != 0 else "silent"
    if found != "refused":
        print(f"--config.{name}={value}: {found}: {output[-300:]}")
    return found


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, number in (("kills", 20), ("damages", 60), ("disks", 5), ("inputs", 100)):
        parser.add_argument(f"--{kind}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        began = time.monotonic()
        status, output = launch(top / "reference")
        assert status == 0, output
        seconds = time.monotonic() - began
        expected = weights(top / "reference")
        trials: dict[str, tuple[int, Callable[[Path], str | None]]] = {
            "kills": (options.kills, lambda at: kill(rng, at, expected, seconds)),
            "damages": (
                options.damages, lambda at: damaged(rng, at, top / "reference", expected)
            ),
            "disk": (options.disks, lambda at: full_disk(rng, at, expected)),
            "inputs": (options.inputs, lambda at: wrong_input(rng, at)),
        }  # fmt: skip
        rows = []
        for kind, (number, trial) in trials.items():
            counts: collections.Counter[str] = collections.Counter()
            for i in range(number):
                folder = top / f"{kind}{i}"
                folder.mkdir()
                found = trial(folder)
                shutil.rmtree(folder)
                if found is not None:
                    counts.update(["trials", found])
            print(kind, dict(counts), flush=True)
            rows.append([kind, *(str(counts[name]) for name in OUTCOMES)])
        print_table("Faults", ["kind", *OUTCOMES], rows)


if __name__ == "__main__":
    main()
