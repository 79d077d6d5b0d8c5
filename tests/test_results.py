"""The tables of docs/results.md are what their commands print from the stored runs."""

import re
import shlex
from pathlib import Path

import pytest

from cka_sr_jax.experiments import paired, table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()
COMMANDS = re.findall(
    r"```sh\npython -m cka_sr_jax\.experiments\.(table|paired) ([^`]*docs/runs/[^`]*)```", PAGE
)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_the_page_has_what_the_command_prints(module, arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    {"table": table, "paired": paired}[module].main(shlex.split(arguments.replace("\\\n", "")))
    assert capsys.readouterr().out.strip() in PAGE


def test_every_csv_of_runs_is_shown():
    shown = {path for _, arguments in COMMANDS for path in re.findall(r"docs/runs/\S+", arguments)}
    assert shown == {f"docs/runs/{path.name}" for path in (ROOT / "docs" / "runs").glob("*.csv")}
