"""What a page of the documentation holds: blocks, cells, commands, links."""

import os
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page):
    """(code, output) of every Python block; the output is None if the page shows none."""
    block = r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"
    return [(code, output or None) for code, output in re.findall(block, page.read_text(), re.S)]


def cells(page):
    """The code of every cell that Sphinx runs when it builds the page."""
    found = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", page.read_text(), re.S | re.M)
    return [re.sub(r"^:.*\n", "", code, flags=re.M) for code in found]  # without its options


def launch_commands(page):
    """The words after "python launch.py" of every such command."""
    return [words[2:] for words in _commands(page) if words[1] == "launch.py"]


def module_commands(page):
    """The words after "python -m" of every such command."""
    return [words[2:] for words in _commands(page) if words[1] == "-m"]


def _commands(page):
    text = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.S))
    text = text.replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "0")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    # Without what is set for a command, such as CUDA_VISIBLE_DEVICES=0.
    lines = [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in lines]
    return [line for line in lines if line[:1] == ["python"]]


def links(page):
    """(file, anchor or "") of every link to a file of this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(page))
    inside = [target.partition("#") for target in targets if not target.startswith("http")]
    return [
        (Path(os.path.normpath(page.parent / file)) if file else page, anchor)
        for file, _, anchor in inside
    ]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _prose(page):
    """The page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
