"""The README is short, and its block needs the library alone and prints its proof."""

import ast
import re

import pytest

from tests.docs.pages import ROOT, python_blocks

README = ROOT / "README.md"
LIBRARY = {"cka_sr_jax", "flax", "jax", "numpy", "optax"}


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 150
    _, (code, _) = python_blocks(README)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 26


@pytest.mark.parametrize("block", python_blocks(README), ids=["sparsify", "penalty"])
def test_a_block_shows_its_output_and_needs_the_library_alone(block):
    code, output = block
    assert output
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    names += [node.module for node in froms]
    assert {name.partition(".")[0] for name in names} <= LIBRARY
    assert {name for name in names if name.startswith("cka_sr_jax")} == {"cka_sr_jax"}


def test_its_figures_on_cka_sr_are_those_of_the_results():
    section = README.read_text().partition("## Does CKA-SR help?")[2].partition("\n## ")[0]
    pages = (ROOT / "docs" / "results").glob("*.md")
    results = " ".join(page.read_text() for page in pages)
    figures = re.findall(r"[-+]?\d+\.\d+", section)
    assert figures
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}\b", results), figure
