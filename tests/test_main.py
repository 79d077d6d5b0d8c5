"""The commands of `cka-sr`."""

import subprocess
import sys
from pathlib import Path

import pytest

from cka_sr_jax import __version__
from cka_sr_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_version_and_help(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"cka-sr {__version__}\n"
    main([])
    without = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == without
    for command in COMMANDS:
        assert f"  {command} " in without


def test_an_unknown_command_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as end:
        main(["tabel", "x"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: Unknown command 'tabel': did you mean 'table'?\n"


@pytest.mark.parametrize("command", ["table", "paired", "figures", "report", "export"])
def test_a_command_gets_its_arguments(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cka-sr"])
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: cka-sr {command} " in capsys.readouterr().out


def test_what_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cka-sr"])
    monkeypatch.setitem(sys.modules, "cka_sr_jax.launch", None)
    with pytest.raises(SystemExit, match=r"pip install 'cka_sr_jax\[train\]'"):
        main(["train"])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "table"])
def test_ctrl_c_while_a_command_loads_is_one_line(command, tmp_path):
    script = f"""
import os, signal, sys, threading
from cka_sr_jax.__main__ import main
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
main(["{command}", "x"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert done.stderr.startswith("Interrupted")


@pytest.mark.slow
def test_training_from_another_folder(tmp_path):
    """The config is found in the repository, and the run is kept where one is."""
    command = [sys.executable, "-m", "cka_sr_jax", "train", "--config.train.steps=3",
               "--config=configs/quickstart/digits.py"]  # fmt: skip
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits" / "result.json").exists()
    table = [*command[:3], "table", "runs/digits"]
    done = subprocess.run(table, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "| rst |" in done.stdout
