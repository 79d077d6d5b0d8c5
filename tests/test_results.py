"""The tables of docs/results.md are what their commands print from the stored runs."""

import re
import shlex
from pathlib import Path

import pytest

from cka_sr_jax.experiments import paired, table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()
# Each command and the table below it.
COMMANDS = re.findall(
    r"```sh\npython -m cka_sr_jax\.experiments\.(table|paired) ([^`]*docs/runs/[^`]*)```\n\n"
    r"((?:\|.*\n)*)",
    PAGE,
)


@pytest.mark.parametrize(("module", "arguments", "below"), COMMANDS)
def test_below_each_command_stands_what_it_prints(module, arguments, below, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    {"table": table, "paired": paired}[module].main(shlex.split(arguments.replace("\\\n", "")))
    assert capsys.readouterr().out == below


def test_every_csv_of_runs_is_shown():
    shown = {
        path for _, arguments, _ in COMMANDS for path in re.findall(r"docs/runs/\S+", arguments)
    }
    assert shown == {f"docs/runs/{path.name}" for path in (ROOT / "docs" / "runs").glob("*.csv")}
