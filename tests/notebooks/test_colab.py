"""The notebook for Colab: its cells run, and git holds no outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SMALL = "STEPS, WIDTH = 40, 32"


def tagged(cell):
    """The tags of a cell."""
    return cell["metadata"].get("tags", [])


def test_git_holds_no_outputs():
    assert len(CODE) >= 10
    for cell in CODE:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_only_the_install_cell_has_a_command_of_the_notebook():
    """So that the other cells are plain Python, here as there; its address is one variable."""
    (install,) = (cell for cell in CODE if "install" in tagged(cell))
    address, command = install["source"]
    assert re.match(r'REPOSITORY = "https://[^"]+"  # ', address)
    assert command == '%pip install --quiet "cka_sr_jax[train] @ git+{REPOSITORY}"'
    for cell in CODE:
        if cell is not install:
            assert not re.search(r"^\s*[%!]", "".join(cell["source"]), re.M)


@pytest.mark.slow
def test_its_cells_run_in_order_on_two_devices(tmp_path):
    """With small settings, as plain Python: a notebook's machinery may be missing here."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "notebooks" / "run_cells.py", NOTEBOOK, SMALL],
        cwd=tmp_path,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "NPROC": "8",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\n2 x cpu\n" in done.stdout
    assert done.stdout.count(" on 2 x cpu\n") == 2  # both runs
    shown = re.findall(r"^shown: (.*)$", done.stdout, re.M)
    assert shown == ["Figure_repr_png_", "Run_repr_html_", "Summary_repr_html_", "Figure_repr_png_"]
    assert re.search(r"^beta 0: .*\nbeta 0.01: test accuracy 0\.\d+", done.stdout, re.M)
    before, after, difference = re.search(
        r"(\d+) layers became (\d+); their outputs differ by (\S+)", done.stdout
    ).groups()
    assert int(after) < int(before) == 5
    assert float(difference) < 1e-4
