"""Programs that are kept on the disk: where, when not, and that they change no result."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cka_sr_jax.training import Checkpoints

ROOT = Path(__file__).parents[2]


def environment(**changes):
    """The variables of this process, with one device and without what JAX is told about caches."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and "COMPILATION" not in k}
    # Matplotlib warns of a cache folder that it cannot write.
    return {**kept, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": tempfile.gettempdir(), **changes}


def kept_by(script, **changes):
    """What a process prints after `keep_programs()` and this script."""
    script = f"from cka_sr_jax.training.compilation import keep_programs\nkeep_programs()\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(**changes), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


WHERE = "import jax; print(jax.config.jax_compilation_cache_dir)"


def test_the_cache_is_the_users_own(tmp_path):
    folder = Path(kept_by(WHERE, XDG_CACHE_HOME=str(tmp_path)))
    assert folder.is_relative_to(tmp_path / "cka_sr_jax" / "programs")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_half_a_program_of_a_killed_process_is_removed(tmp_path):
    """JAX writes a program and then its time of use; without the latter it would store no other."""
    where = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = Path(kept_by(WHERE, **where))
    (folder / "jit_x-0-cache").write_bytes(b"half of it")
    script = "import jax\njax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
    kept_by(script + "jax.jit(lambda x: x + 1)(1.0)", **where)
    assert not (folder / "jit_x-0-cache").exists()
    assert list(folder.glob("jit__lambda*-cache"))


def test_a_folder_that_others_may_write_is_not_used(tmp_path):
    """What is in it is run."""
    where = {"XDG_CACHE_HOME": str(tmp_path)}
    Path(kept_by(WHERE, **where)).chmod(0o777)
    assert kept_by(WHERE, **where) == "None"


def test_another_number_of_threads_is_another_folder(tmp_path):
    """The threads are compiled in."""
    where = {"XDG_CACHE_HOME": str(tmp_path)}
    assert kept_by(WHERE, NPROC="1", **where) != kept_by(WHERE, NPROC="7", **where)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "/somewhere/else"}, "/somewhere/else"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),
    ],
)
def test_where_the_user_has_said_otherwise(changes, expected):
    assert kept_by(WHERE, **changes) == expected


@pytest.mark.slow
def test_a_second_run_of_another_seed_and_beta_compiles_nothing(tmp_path):
    """And ends with the weights that it has without a cache; a damaged cache costs time alone."""
    fields = ["--config.train.steps=6", "--config.model.options.hidden=(16,16)"]

    def launch(name, *more, **changes):
        command = [sys.executable, "launch.py", f"--workdir={tmp_path / name}", *fields, *more]
        changes = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **changes}
        done = subprocess.run(
            command, cwd=ROOT, env=environment(**changes), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def weights(name):
        arrays = Checkpoints(tmp_path / name).arrays()
        return {path: array for path, array in arrays.items() if path != "seconds"}

    other = ["--config.seed=3", "--config.penalty.beta=0.01"]
    assert launch("first") == ""
    programs = {path.name for path in (tmp_path / "cache").rglob("*-cache")}
    assert any(name.startswith("jit_take_step") for name in programs)
    assert launch("second", *other) == ""
    assert {path.name for path in (tmp_path / "cache").rglob("*-cache")} == programs
    launch("without", *other, JAX_ENABLE_COMPILATION_CACHE="false")
    for path in (tmp_path / "cache").rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:-50])
    assert launch("damaged", *other) == ""
    grid = ["--grid", "--jobs=2", "--config.seeds=(0,1)"]
    assert launch("grid", *grid) == ""  # its processes say nothing of the damage either
    for name in ("second", "damaged"):
        for path, array in weights("without").items():
            np.testing.assert_array_equal(array, weights(name)[path])
