"""The pages of results show what their commands print from the stored runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("results*/**/*.md")) + sorted(
    (ROOT / "docs").glob("results.md")
)
COMMAND = re.compile(r"```sh\n((?:python -m cka_sr_jax\.analysis\.[^`]*?\n)+?)```\n\n")


def commands():
    """(page, module, arguments, text below) of each command that reads stored runs."""
    for page in PAGES:
        text = page.read_text()
        for match in COMMAND.finditer(text):
            for line in match[1].replace("\\\n", "").splitlines():
                module, *arguments = shlex.split(line.removeprefix("python -m "))
                if module.endswith("paper_tables") or any("results/" in a for a in arguments):
                    yield page, module, arguments, text[match.end() :]


COMMANDS = list(commands())
TABLES = [command for command in COMMANDS if not command[1].endswith("figures")]
FIGURES = [command for command in COMMANDS if command[1].endswith("figures")]


def printed(module, arguments, capsys):
    main = importlib.import_module(module).main
    main(arguments) if arguments else main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "module", "arguments", "below"),
    TABLES,
    ids=[f"{c[0].stem}-{i}" for i, c in enumerate(TABLES)],
)
def test_below_each_command_stands_what_it_prints(
    page, module, arguments, below, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = printed(module, arguments, capsys)
    if not out.startswith("|"):
        out = f"```\n{out}```\n"
    assert below[: len(out) + 1] == out + "\n"  # or the next line joins the table


def test_every_file_of_runs_is_shown():
    shown = {a for _, _, arguments, _ in COMMANDS for a in arguments if a.startswith("results/")}
    assert shown == {f"results/{path.name}" for path in (ROOT / "results").iterdir()}


def test_stored_runs_have_plain_names():
    for path in (ROOT / "results").rglob("*"):
        assert not set("=, ") & set(path.name)
