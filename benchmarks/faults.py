"""What becomes of a run that is killed, damaged, short of disk, or asked for what cannot be?

  python benchmarks/faults.py --kills=20 --damages=60 --disks=5 --permissions=10 --inputs=100

A small run on digits is the reference. Then, with random places and times:

  kills        a run gets SIGKILL, SIGTERM, SIGINT or SIGHUP, and its command is given again
  damages      a bit of a file of the stored run flips, or a file is cut, emptied or removed, or a
               folder is; then the run's command is given again, and its weights are loaded
  disk         the disk fills up, then has room again (where root may mount a tmpfs; else left out)
  permissions  a file or folder may not be read or written, then may be again
  inputs       the command line, a config file or the work directory cannot be

Prints for each kind how many trials ended exactly as the reference, bit for bit; were refused in
one line, with nothing written, or told in one line of a checkpoint that is passed over; lost their
run; ended otherwise without a word; printed a traceback; or hung. Trials that did neither of the
first two are shown as they end.

A run that is to be killed is a process of its own, imports included. All other commands run in
forks of a process that has the modules loaded, and share a cache of compiled programs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from output import print_table

ROOT = Path(__file__).parents[1]
RUN = (
    "--config.train.steps=300", "--config.train.log_every=10", "--config.checkpoint.every=20",
    "--config.model.options.hidden=(32,32,32)", "--config.sparsity.rule=rigl",
    "--config.sparsity.density=0.2", "--config.sparsity.update_every=10",
)  # fmt: skip
KINDS = ("kills", "damages", "disks", "permissions", "inputs")
OUTCOMES = ("trials", "exact", "refused", "lost", "silent", "traceback", "hung")
SECONDS = 180  # after which a command counts as hung
# A superuser may read and write everything; without these rights it is as any other user.
AS_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


class Launcher:
    """`launch.py` in forks of one process that has its modules loaded."""

    def __init__(self, *prefix: str) -> None:
        """Start the process; `prefix` goes before its command."""
        self._server = subprocess.Popen(
            [*prefix, sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def __call__(self, log: Path, *arguments: str) -> tuple[int | None, str]:
        """Status and output of a command line; status None where it hung."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(log), *arguments]) + "\n")
        self._server.stdin.flush()
        status = json.loads(self._server.stdout.readline())
        return status, log.read_text(errors="replace")

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def serve() -> None:
    """Answer each line of stdin, a log and a command line, with the status of its run."""
    import cka_sr_jax.sweeps
    import cka_sr_jax.workflows  # noqa: F401

    for line in sys.stdin:
        log, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _run_launch(log, arguments)
        print(json.dumps(_wait(child)), flush=True)


def _wait(child: int) -> int | None:
    for _ in range(100 * SECONDS):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run_launch(log: str, arguments: list[str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["launch.py", *arguments]
    status: Any = 0
    try:
        runpy.run_path("launch.py", run_name="__main__")
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def weights(workdir: Path, tell: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The arrays of the newest intact checkpoint; `tell` gets what `load_variables` warns of."""
    from cka_sr_jax.training import Checkpoints, load_weights

    load_weights(workdir, tell)
    arrays = Checkpoints(workdir, tell=lambda _: None).arrays()
    return {path: array for path, array in arrays.items() if path != "seconds"}


def outcome(status: int | None, output: str, workdir: Path, expected: dict) -> str:
    """How a command ended, once it has ended for good."""
    if status is None:
        return "hung"
    if "Traceback" in output:
        return "traceback"
    if status != 0:
        return "refused" if len(re.findall("^error: ", output, re.MULTILINE)) == 1 else "lost"
    told: list[str] = []
    found = weights(workdir, told.append)
    same = found.keys() == expected.keys() and all(
        np.array_equal(found[path], expected[path]) for path in expected
    )
    complete = (workdir / "result.json").exists()
    if same and complete:
        return "exact"
    # A finished run reads no checkpoint; whoever loads its weights is told of a damaged one.
    return "refused" if complete and len(told) == 1 else "silent"


class Campaign:
    """The trials, each a method `(rng, folder) -> (outcome, what was done and printed)`."""

    def __init__(self, top: Path) -> None:
        """Train the reference, and take the time that it needs."""
        self._top, self._threads = top, threading.local()
        self._all: list[Launcher] = []
        self._reference = top / "reference"
        status, output = self._launch(top / "log", self._reference)
        assert status == 0, output
        self._expected = weights(self._reference, print)
        began = time.monotonic()
        subprocess.run(self._command(top / "timed"), cwd=ROOT, check=True, capture_output=True)
        self._seconds = time.monotonic() - began

    def _launcher(self, kind: str, *prefix: str) -> Launcher:
        if not hasattr(self._threads, kind):
            launcher = Launcher(*prefix)
            self._all.append(launcher)
            setattr(self._threads, kind, launcher)
        return getattr(self._threads, kind)

    def _launch(self, log: Path, workdir: Path, *arguments: str) -> tuple[int | None, str]:
        return self._launcher("plain")(log, f"--workdir={workdir}", *RUN, *arguments)

    def _command(self, workdir: Path) -> list[str]:
        return [sys.executable, "launch.py", f"--workdir={workdir}", *RUN]

    def close(self) -> None:
        """End what was started."""
        for launcher in self._all:
            launcher.close()

    def run(self, kind: str, number: int, seed: int, jobs: int) -> collections.Counter[str]:
        """So many trials of a kind; shows those that went wrong, and counts all."""
        counts: collections.Counter[str] = collections.Counter()

        def one(i: int) -> tuple[str, str] | None:
            folder = self._top / f"{kind}{i}"
            folder.mkdir()
            found = getattr(self, kind)(random.Random(f"{seed} {kind} {i}"), folder)
            shutil.rmtree(folder)
            return found

        with ThreadPoolExecutor(jobs) as pool:
            for found in filter(None, pool.map(one, range(number))):
                counts.update(["trials", found[0]])
                if found[0] not in ("exact", "refused"):
                    print(
                        f"{kind}: {found[0]}: {found[1][:300]} ... {found[1][-900:]}\n", flush=True
                    )
        print(kind, dict(counts), flush=True)
        return counts

    def _end(self, status: int | None, output: str, workdir: Path) -> str:
        return outcome(status, output, workdir, self._expected)

    def kills(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        """A signal at a random time, and the command once more."""
        workdir = folder / "run"
        process = subprocess.Popen(
            self._command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        after, name = rng.uniform(0.1, self._seconds), rng.choice(["KILL", "TERM", "INT", "HUP"])
        time.sleep(after)
        process.send_signal(getattr(signal, f"SIG{name}"))
        what = f"SIG{name} after {after:.2f} s"
        try:
            first, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "hung", what
        status, output = self._launch(folder / "log", workdir)
        # Before the first line of launch.py, Python itself answers Ctrl-C with a traceback.
        early = not re.search('File ".*launch.py"', first)
        said = output if early else first + output
        return self._end(status, said, workdir), f"{what}\n{first}\n{output}"

    def damages(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        """Damage a copy of the finished run, and give its command again."""
        workdir = folder / "run"
        shutil.copytree(self._reference, workdir)
        if rng.random() < 0.7:
            (workdir / "result.json").unlink()  # or the run would be complete, and nothing be read
        what = damage(rng, workdir)
        status, output = self._launch(folder / "log", workdir)
        return self._end(status, output, workdir), f"{what}\n{output}"

    def disks(self, rng: random.Random, folder: Path) -> tuple[str, str] | None:
        """The disk fills up at a random place, then has room."""
        kilobytes = rng.randrange(40, 600)
        with small_disk(folder, kilobytes) as disk:
            if disk is None:
                return None
            status, output = self._launch(folder / "log", disk / "run")
            what = f"{kilobytes} kB\n{output}"
            if status is None:
                return "hung", what
            said = [line for line in output.splitlines() if "No space left" in line]
            if "Traceback" in output or (status != 0 and len(said) != 1):
                return "traceback" if "Traceback" in output else "silent", what
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            status, output = self._launch(folder / "log", disk / "run")
            return self._end(status, output, disk / "run"), f"{what}\n{output}"

    def permissions(self, rng: random.Random, folder: Path) -> tuple[str, str] | None:
        """A part of a stored or of a new run is forbidden; then it is allowed."""
        prefix = AS_USER if os.geteuid() == 0 else ()
        if prefix and not shutil.which(prefix[0]):
            return None
        launch = self._launcher("user", *prefix)
        workdir = folder / "run"
        shutil.copytree(self._reference, workdir)
        for path in [workdir / "result.json", *sorted((workdir / "checkpoints").iterdir())[-1:]]:
            if path.name == "result.json":
                path.unlink()
            elif rng.random() < 0.7:  # so that there is something left to train
                shutil.rmtree(path)
        paths = [workdir, *(p for p in sorted(workdir.rglob("*")) if "tensorboard" not in p.parts)]
        if rng.random() < 0.2:
            shutil.rmtree(workdir)
            paths = [folder]
        path, mode = rng.choice(paths), rng.choice([0o000, 0o400, 0o500])
        old = path.stat().st_mode
        what = f"{oct(mode)} {path.relative_to(folder)}"
        log = folder.parent / f"{folder.name}.log"
        path.chmod(mode)
        try:
            status, output = launch(log, f"--workdir={workdir}", *RUN)
        finally:
            with suppress(FileNotFoundError):  # an old checkpoint that has gone since
                path.chmod(old)
        what = f"{what}\n{output}"
        if status is None or "Traceback" in output:
            return "hung" if status is None else "traceback", what
        if status != 0 and len(re.findall("^error: ", output, re.MULTILINE)) != 1:
            return "silent", what
        status, output = self._launch(log, workdir)
        return self._end(status, output, workdir), f"{what}\n{output}"

    def inputs(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        """Something that cannot be."""
        arguments = wrong_arguments(rng, folder)
        before = sorted(folder.rglob("*"))
        log = folder.parent / f"{folder.name}.log"
        status, output = self._launcher("plain")(log, *arguments)
        what = f"{' '.join(arguments)}\n{output}"
        if status == 0 or sorted(folder.rglob("*")) != before:
            return "silent", what
        return outcome(status, output, folder, {}), what


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


def wrong_arguments(rng: random.Random, folder: Path) -> list[str]:
    """A command line that cannot be, of a random kind."""
    kind = rng.choice([_wrong_value, _wrong_value, _wrong_name, _wrong_pair, _wrong_flag,
                       _wrong_config_file, _wrong_workdir])  # fmt: skip
    workdir, arguments = folder / "run", kind(rng, folder)
    return arguments if kind is _wrong_workdir else [f"--workdir={workdir}", *arguments]


def _wrong_value(rng: random.Random, _: Path) -> list[str]:
    """A field outside its range, or of another type."""
    from cka_sr_jax.training.fields import FIELDS

    while True:
        name = rng.choice([name for name, field in FIELDS.items() if field.kind is not dict])
        field, number = FIELDS[name], rng.choice([1, -1]) * 10 ** rng.uniform(-4, 12)
        wrong: dict[type, list[Any]] = {
            int: ["x", "", f"{number:.3f}", round(number), 10**25, "(1,)", "True"],
            float: ["x", "", number, "nan", "inf", "-inf", "1e400", "(0.5,)", "1,5"],
            str: ["no-such-thing", f"{number:g}", "a\nb", "../x", "[red]"],
            bool: ["maybe", rng.choice([-1, 2, 7]), "1.5"],
            tuple: [f"({number!r},)", f"({round(number)},)", "('x',)", "x", "(1", "((1,),)",
                    f"({-number!r}, {number!r})"],
        }  # fmt: skip
        value = rng.choice(wrong[field.kind])
        # Whether it is wrong is asked of the value as a text would be read into the field's type.
        read = _read(str(value), field.kind)
        if field.problem(name, read):
            return [f"--config.{name}={value}"]


def _read(text: str, kind: type) -> Any:
    try:
        if kind is tuple:
            import ast

            return ast.literal_eval(text)
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        return kind(text)
    except (ValueError, SyntaxError):
        return text


def _wrong_name(rng: random.Random, _: Path) -> list[str]:
    """A field whose name has a letter too many, too few, or in the wrong place."""
    from cka_sr_jax.training.fields import FIELDS

    name = rng.choice(list(FIELDS))
    place = rng.randrange(len(name))
    changed = rng.choice(
        [name[:place] + name[place + 1 :], name[:place] + "x" + name[place:], f"{name}.more",
         name[:place] + name[place:][::-1]]
    )  # fmt: skip
    return [f"--config.{changed}=1"] if changed not in FIELDS else [f"--config.{name}x=1"]


def _wrong_pair(rng: random.Random, _: Path) -> list[str]:
    """Fields that are fine each and do not go together, or do not go with the data."""
    share = rng.uniform(0.5, 0.9)
    pairs = [
        {"sparsity.rule": "gmp", "sparsity.start": share, "sparsity.end": share / 2},
        {"sparsity.rule": "granet", "sparsity.prune_end": share, "sparsity.end": share / 2},
        {"sparsity.rule": "granet", "sparsity.initial_density": share / 9, "sparsity.density": 0.5},
        {"sparsity.rule": "rigl", "sparsity.drop_fraction": 0.2, "sparsity.final_drop_fraction": 1},
        {"sparsity.rule": "rst", "sparsity.drop_fraction": share},
        {"sparsity.rule": "dense", "sparsity.update_every": rng.randrange(1, 99)},
        {"sparsity.rule": "sr_ste", "sparsity.n": rng.randrange(4, 99), "sparsity.m": 4},
        {"train.batch_size": rng.randrange(1500, 10**7)},
        {"penalty.samples": rng.choice([0, 1, 2, 3]), "penalty.beta": share},
        {"penalty.samples": rng.randrange(129, 10**6), "penalty.beta": share},
        {"penalty.samples": 64, "penalty.batches": rng.randrange(3, 99), "penalty.beta": share},
        {"penalty.similarity": "cca", "penalty.kernel": "rbf", "penalty.beta": share},
        {"penalty.similarity": "cca", "penalty.sync": True, "penalty.beta": share},
        {"data.pad": rng.randrange(8, 10**6)},
        {"data.downsample": rng.choice([3, 5, 6, 7, 9, 10**9])},
        {"data.mean": (0.5,) * rng.randrange(2, 9), "data.std": (0.5,)},
        {"data.mean": (0.5, 0.4, 0.3), "data.std": (0.2, 0.2, 0.2)},
        {"data.validation": rng.choice([0.9999, 1e-9])},
        {"data.name": rng.choice(["cifar10", "no/such/set", "../x", "relu_teacher", ""])},
        {"data.name": "cifar10", "data.dir": "/no/such/folder"},
        {"data.name": "cifar10", "data.dir": str(ROOT)},
        {"model.name": f"resnet{rng.choice([0, 1, 9, 21, 10**9])}"},
        {"model.name": "lenet5"},  # digits are too small
        {"model.options.hidden": rng.choice(["()", "(0,)", "(-3,)", "(1.5,)", "('a',)", "3"])},
        {"model.options.width": rng.randrange(99)},
        {"eval.select": "best-validation", "data.validation": 0.0},
        {"eval.select": "best-test", "sparsity.rule": "str"},
        {"sparsity.exclude": ("no_such_layer*",)},
        {"sparsity.include": ("no_such_layer*",)},
        {"sparsity.exclude": ("*",)},
        {"sparsity.rule": "str", "sparsity.rescale": True},
        {"lottery.rounds": 2, "sparsity.rule": "rigl"},
        {"layer_sparsity.strengths": (0.1, 0.01)},
        {"layer_sparsity.strengths": (0.01, 0.1), "model.name": "resnet20"},
        {"optimizer.decay_at": (0.5, 0.4)},
        {"grid.penalty.beta": (0, 1)},
        {"seeds": (0, 1)},
    ]
    return [f"--config.{name}={value}" for name, value in rng.choice(pairs).items()]


def _wrong_flag(rng: random.Random, _: Path) -> list[str]:
    """Flags that do not exist or do not go together."""
    number = str(rng.randrange(2, 10**6))
    return rng.choice(
        [
            [f"--jobs={number}"], [f"--replicas={number}"], ["--retry"], ["--grid"],
            [f"--grid_index={number}"], ["--jobs=x", "--grid"], ["--jobs=0", "--grid"],
            [f"--num_processes={number}"], [f"--process_id={number}"], ["--coordinator=x"],
            ["--coordinator=localhost:1", f"--num_processes={number}", f"--process_id={number}"],
            [f"--unknown{number}"], [f"word{number}"], ["--config="], ["--config"],
            ["--config=a.py", "--config=b.py"], ["--workdir"], ["-x"], [f"--seed={number}"],
        ]
    )  # fmt: skip


def _wrong_config_file(rng: random.Random, folder: Path) -> list[str]:
    """A file that gives no config."""
    head = "from cka_sr_jax.training import default_config\n"
    body = "def get_config():\n    config = default_config()\n"
    contents = [
        "def get_config(:\n", "\0\1\2", "import no_such_module\n", "", "x = 1\n",
        "get_config = 3\n", "def get_config():\n    return None\n",
        "def get_config():\n    return {}\n", "def get_config():\n    raise ValueError('no')\n",
        f"{head}{body}    config.train.no_such = 1\n    return config\n",
        f"{head}{body}    config.train.batch_size = 'many'\n    return config\n",
        f"{head}{body}    config.train.batch_size = -1\n    return config\n",
        f"{head}{body}    config.grid.penalty.beta = (0, 1)\n    return config\n",
        f"{head}{body}    del config.train\n    return config\n",
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
        "raise SystemExit\n", "1 / 0\n", "é = '\xff", "def get_config(argument):\n    return 1\n",
    ]  # fmt: skip
    path = folder / f"config{rng.randrange(10**6)}.py"
    path.write_text(rng.choice(contents), encoding=rng.choice(["utf-8", "latin-1"]))
    return [f"--config={rng.choice([path, path, path, folder, folder / 'none.py'])}"]


def _wrong_workdir(rng: random.Random, folder: Path) -> list[str]:
    """A work directory that cannot be one."""
    name = f"run{rng.randrange(10**6)}"
    (folder / "file").write_text("years of work")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("years of work")
    (folder / "link").symlink_to(folder / "nowhere" / "at" / "all")
    workdir = rng.choice(
        [f"{folder}/{name}[1]", f"{folder}/{name}*", f"{folder}/{name}?", f"{folder}/a\\{name}",
         f"gs://bucket/{name}", f"s3://bucket/{name}", f"{folder}/{'x' * rng.randrange(256, 999)}",
         f"{folder}/{'x/' * 3000}", f"{folder}/file", f"{folder}/file/{name}", f"{folder}/full",
         f"{folder}/link", "/proc/1/" + name, f"~no_such_user_{name}/run"]
    )  # fmt: skip
    return [f"--workdir={workdir}", *RUN]


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for kind, number in zip(KINDS, (20, 60, 5, 10, 100), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials side by side")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        campaign = Campaign(Path(name))
        rows = []
        for kind in KINDS:
            counts = campaign.run(kind, getattr(options, kind), options.seed, options.jobs)
            rows.append([kind, *(str(counts[name]) for name in OUTCOMES)])
        campaign.close()
        print_table("Faults", ["kind", *OUTCOMES], rows)
    return None


if __name__ == "__main__":
    main()
