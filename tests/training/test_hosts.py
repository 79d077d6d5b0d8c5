"""Several processes that train one run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cka_sr_jax.training import Checkpoints, ConfigError
from cka_sr_jax.training.hosts import announced, arrays_of_first, is_first, join, of_first, on_any
from tests.tfds_sets import streamed_arguments, write_photographs
from tests.training.runs import arrays, assert_same_run, records, wait_for_step

ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "tfds"
SMALL = (
    "--config.train.steps=60", "--config.train.log_every=10", "--config.checkpoint.every=20",
    "--config.model.options.hidden=(64,64,64)", "--config.sparsity.rule=rigl",
    "--config.sparsity.update_every=10", "--config.sparsity.density=0.2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # in a batch script, outside srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_who_is_one_of_several(environment, expected):
    assert announced(environment) is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "--num_processes=None --process_id=None: give all three"),
        ((None, 2, 0), "--coordinator=None --num_processes=2"),
        (("localhost:1", 2, 2), "--process_id=2 is not below --num_processes=2"),
        (("localhost:1", 2, -1), "--process_id=-1 is not below"),
    ],
)
def test_a_group_that_cannot_be_is_one_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        join(*arguments, environment={})
    assert "\n" not in str(error.value)


def test_a_process_alone_is_the_first():
    join(environment={})
    assert is_first()
    assert of_first(lambda: {"a": 1}) == {"a": 1}
    assert on_any(True, False) == (True, False)
    assert arrays_of_first({"w": 1}) == {"w": 1}
    with pytest.raises(ConfigError, match="no"):
        of_first(lambda: (_ for _ in ()).throw(ConfigError("no")))


def launch(workdir, *arguments, devices=4, group=()):
    """launch.py with this many devices; its output goes to a file beside the work directory."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    name = f"{workdir.name}{group[-1][-1] if group else ''}.log"
    with (workdir.parent / name).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "launch.py", f"--workdir={workdir}", *group, *arguments], cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def launch_two(workdir, *arguments, second=()):
    """Two processes with two devices each, the second one with more arguments."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = (f"--coordinator=localhost:{port}", "--num_processes=2")
    return [
        launch(workdir, *arguments, *more, devices=2, group=(*group, f"--process_id={i}"))
        for i, more in enumerate([(), second])
    ]


def finish(*processes, timeout=600):
    return [process.wait(timeout) for process in processes]


def assert_close_run(one, two):
    """The same masks, and parameters and slots to 1e-5."""
    first, second = arrays(one), arrays(two)
    assert first.keys() == second.keys()
    for path, value in first.items():
        if value.dtype == bool:
            np.testing.assert_array_equal(value, second[path], err_msg=path)
        elif path != "flops":
            np.testing.assert_allclose(value, second[path], atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_two_processes_train_what_one_does(parallel, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = (*SMALL, f"--config.train.parallel={parallel}")
    assert finish(launch(one, *arguments)) == [0]
    assert finish(*launch_two(two, *arguments)) == [0, 0]
    assert_close_run(one, two)
    assert [r["step"] for r in records(two, "train")] == [10, 20, 30, 40, 50, 60]
    silent = (tmp_path / "two1.log").read_text()
    assert "accuracy" not in silent  # the second process prints and writes nothing
    assert "step" not in silent


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_two_processes_decode_their_parts_of_a_streamed_set(parallel, tmp_path):
    # In few steps: 60 of them make 1e-3 of the order in which the gradients are summed.
    write_photographs(tmp_path / "sets" / "tiny" / "1.0.0", train=57, test=9)
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = (
        "--config.train.steps=10", *SMALL[1:3], *streamed_arguments(tmp_path / "sets"),
        f"--config.train.parallel={parallel}",
    )  # fmt: skip
    assert finish(launch(one, *arguments)) == [0]
    assert finish(*launch_two(two, *arguments, "--config.data.workers=1")) == [0, 0]
    assert_close_run(one, two)
    validation = [records(folder, "validation")[-1] for folder in (one, two)]
    assert validation[0]["accuracy"] == validation[1]["accuracy"]


@pytest.mark.slow
@pytest.mark.skipif(not TFDS.exists(), reason="needs prepared TFDS sets beside the repository")
def test_two_processes_train_a_resnet_as_one_does(tmp_path):
    """At a small learning rate, since BatchNorm makes much of a rounding error at a large one."""
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = (
        "--config=configs/paper/cifar10_resnet20_rst.py", f"--config.data.dir={TFDS}",
        "--config.train.steps=20", "--config.train.log_every=10", "--config.model.name=resnet14",
        "--config.train.batch_size=32", "--config.optimizer.learning_rate=0.001",
    )  # fmt: skip
    assert finish(launch(one, *arguments), timeout=1200) == [0]
    assert finish(*launch_two(two, *arguments), timeout=1200) == [0, 0]
    first, second = arrays(one), arrays(two)
    for path, value in first.items():
        if "masks" in path:
            np.testing.assert_array_equal(value, second[path], err_msg=path)
        elif "params" in path:
            np.testing.assert_allclose(value, second[path], atol=1e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["one", "two"])
def test_a_checkpoint_of_one_is_a_checkpoint_of_two(first, tmp_path):
    """Stopped after some steps in one form, and continued in the other."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(launch(whole, *SMALL)) == [0]
    long = [a.replace("log_every=10", "log_every=1") for a in SMALL]
    start = [launch(stopped, *long)] if first == "one" else launch_two(stopped, *long)
    wait_for_step(stopped, 25)
    start[-1].send_signal(signal.SIGTERM)  # told to one process, it stops all
    assert finish(*start) == [1] * len(start)
    goes_on = launch_two(stopped, *long) if first == "one" else [launch(stopped, *long)]
    assert finish(*goes_on) == [0] * len(goes_on)
    assert_close_run(whole, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_all_end_and_the_same_command_goes_on(victim, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = ("--config.train.steps=400", *SMALL[1:])
    assert finish(*launch_two(whole, *long)) == [0, 0]
    group = launch_two(killed, *long)
    wait_for_step(killed, 50)
    group[victim].kill()
    began = time.monotonic()
    assert all(status != 0 for status in finish(*group, timeout=60))
    assert time.monotonic() - began < 60
    assert Checkpoints(killed).latest_step()
    assert not (killed / "result.json").exists()
    assert finish(*launch_two(killed, *long)) == [0, 0]
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("config.optimizer.learning_rate=0.5", "optimizer.learning_rate is 0.1 on process 0 and "
         "0.5 on process 1: give all processes the same command"),
        ("config.penalty.beta=0", "penalty.beta is 0.01 on process 0 and 0.0 on process 1"),
        ("config.seed=5", "seed is 0 on process 0 and 5 on process 1"),
        ("config.data.dir=/no/such/folder", "/no/such/folder"),  # a set that one machine lacks
        ("config.train.batch_size=0", "train.batch_size=0: expected"),
        ("workdir=", "--workdir='' is empty"),
    ],
)  # fmt: skip
def test_processes_that_do_not_agree_are_refused(flag, message, tmp_path):
    """A mistake of one ends all in one sentence, before anything is written."""
    arguments = SMALL
    if "data.dir" in flag:
        write_photographs(tmp_path / "sets" / "tiny" / "1.0.0", train=57, test=9)
        arguments = ("--config.train.steps=10", *SMALL[1:3], *streamed_arguments(tmp_path / "sets"))
    group = launch_two(tmp_path / "run", *arguments, second=(f"--{flag}",))
    assert finish(*group, timeout=120) == [2, 2]
    for number in range(2):
        output = (tmp_path / f"run{number}.log").read_text()
        assert len(re.findall("^error: ", output, re.MULTILINE)) == 1
        assert message in output
        assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_that_one_process_meets_later_ends_all(tmp_path):
    """A record that is damaged on one machine: the other one does not wait for it."""
    for number in range(2):
        sets = tmp_path / f"sets{number}"
        write_photographs(sets / "tiny" / "1.0.0", train=57, test=9)
        for file in (sets / "tiny" / "1.0.0").glob("*train*") if number else ():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 255
            file.write_bytes(content)
    arguments = ("--config.train.steps=10", *SMALL[1:3], *streamed_arguments(tmp_path / "sets0"))
    group = launch_two(
        tmp_path / "run", *arguments, second=(f"--config.data.dir={tmp_path / 'sets1'}",)
    )
    assert all(finish(*group, timeout=120))
    assert re.search("^error: .*record", (tmp_path / "run1.log").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_what_does_not_train_in_several_processes_is_refused(tmp_path):
    arguments = (*SMALL, "--config.lottery.rounds=1", "--config.sparsity.rule=dense")
    arguments = [a for a in arguments if "sparsity" not in a or "dense" in a]
    assert finish(*launch_two(tmp_path / "run", *arguments)) == [2, 2]
    assert "2 processes were started together" in (tmp_path / "run0.log").read_text()
