"""The tables of docs/results.md are what their commands print from the stored runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from cka_sr_jax.analysis import paired, table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()
# Each command, and the page below it.
COMMANDS = [
    (match[1], match[2], PAGE[match.end() :])
    for match in re.finditer(
        r"```sh\npython -m cka_sr_jax\.experiments\.(table|paired) ([^`]*docs/runs/[^`]*)```\n\n",
        PAGE,
    )
]


@pytest.mark.parametrize(("module", "arguments", "below"), COMMANDS, ids=range(len(COMMANDS)))
def test_below_each_command_stands_what_it_prints(module, arguments, below, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    {"table": table, "paired": paired}[module].main(shlex.split(arguments.replace("\\\n", "")))
    printed = capsys.readouterr().out
    assert below[: len(printed) + 1] == printed + "\n"  # or the next line joins the table


def test_every_csv_of_runs_is_shown():
    shown = {
        path for _, arguments, _ in COMMANDS for path in re.findall(r"docs/runs/\S+", arguments)
    }
    assert shown == {f"docs/runs/{path.name}" for path in (ROOT / "docs" / "runs").glob("*.csv")}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_paper_s_tables_say_is_what_the_script_prints(capsys):
    module = script("paper_tables")
    assert module.table_2().shape == (5, 12)
    assert module.table_5().shape == (3, 6)
    module.main()
    assert f"```\n{capsys.readouterr().out}```\n" in PAGE


def test_how_similar_neighbors_are_is_what_the_script_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = "docs/runs/fashion_mnist_mlp_cka_blocks"
    script("neighbor_cka").main(folder)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 8
    assert f"python cka_sr_jax/analysis/neighbor_cka.py {folder}\n```\n\n{printed}\n" in PAGE
