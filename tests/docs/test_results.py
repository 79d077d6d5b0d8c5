"""The pages of results show what their commands print and draw from the stored runs."""

import importlib
import re
import runpy
import shlex

import pytest

from tests.docs.pages import ROOT, anchors, links

PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))


def commands():
    """(page, words after "python", text below) of each command that reads what is stored."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"```sh\npython ([^`]*)\n```\n\n", text):
            words = shlex.split(match[1].replace("\\\n", ""))
            stored = any(word.startswith("results/") for word in words)
            if stored or words[-1].endswith(("paper_tables", "paper_cost.py")):
                yield page, words, text[match.end() :]


COMMANDS = [
    pytest.param(*command, id=f"{command[0].stem}{i}") for i, command in enumerate(commands())
]


@pytest.mark.parametrize(("page", "words", "below"), COMMANDS)
def test_below_each_command_stands_what_it_makes(page, words, below, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    drawn = []
    if words[0] == "-m":
        module, arguments = importlib.import_module(words[1]), words[2:]
        if hasattr(module, "write_png"):  # the page's figure stays as it is
            monkeypatch.setattr(module, "write_png", lambda figure, path: drawn.append(path))
        module.main(arguments) if arguments else module.main()
    else:
        runpy.run_path(words[0])["main"]()
    shown = capsys.readouterr().out
    if "cka_sr_jax.analysis.figures" in words:
        assert shown.startswith(f"{drawn[0]} shows results/")
    else:
        shown = shown if shown.startswith("|") else f"```\n{shown}```\n"
        assert below.startswith(shown)
        below = below[len(shown) :]
        assert not below or below.startswith("\n")  # or the next line joins the table
    for path in drawn:
        name = re.escape(path.removeprefix("docs/results/"))
        assert re.match(rf"\s*!\[[^\n]*\]\({name}\)\n", below)


def test_every_file_of_runs_is_shown():
    shown = {word for command in COMMANDS for word in command.values[1]}
    stored = {f"results/{path.name}" for path in (ROOT / "results").iterdir()}
    assert stored <= shown


def test_every_figure_has_a_command_and_is_shown():
    stored = {f"docs/results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.png")}
    words = {word.removeprefix("--png=") for command in COMMANDS for word in command.values[1]}
    # What is drawn from weights, which are not stored, stands below a command on runs.
    from_runs = re.compile(r"```sh\n(python -m [^`]*runs/[^`]*)```\n\n!\[[^\n]*\]\((.*)\)\n")
    for page in PAGES:
        for command, figure in from_runs.findall(page.read_text()):
            assert f"docs/results/{figure}" in command.split()
            words.add(f"docs/results/{figure}")
    assert stored <= words


def test_paths_of_runs_are_plain():
    for path in (ROOT / "results").rglob("*"):
        assert re.fullmatch(r"[\w.]+", path.name), path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), anchor


def test_the_index_has_every_page():
    index = ROOT / "docs" / "results" / "index.md"
    assert {target for target, _ in links(index)} >= set(PAGES) - {index}
