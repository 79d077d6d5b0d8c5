"""How the package is kept: who knows the rules' names, how long modules are, what is private."""

import ast
from pathlib import Path

import pytest

from cka_sr_jax.sparsity import RULES
from cka_sr_jax.training.methods import METHOD_NAMES

PACKAGE = Path(__file__).parents[1] / "cka_sr_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 300
REASON = "long because"
NAMES = {*RULES, *METHOD_NAMES}

# Names of rules that are also words for something else, and where they are.
OTHER_MEANINGS = {
    "__init__.py": ("static",),  # exported
    "models/lenet.py": ("dense",),  # the name of a stage of features
    "models/tokens.py": ("channels",),  # the samples of CKA
}


def name(file):
    """Where a module is, from the package's folder."""
    return file.relative_to(PACKAGE).as_posix()


def constants(tree):
    """Every constant that is not a docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [node for node in nodes if id(node) not in docstrings]


@pytest.mark.parametrize("file", FILES, ids=name)
def test_rule_names_stand_in_sparsity_and_in_methods_alone(file):
    """A new rule must need no change anywhere else."""
    if name(file).startswith("sparsity/") or name(file) == "training/methods.py":
        return
    expected = OTHER_MEANINGS.get(name(file), ())
    found = {
        f"line {node.lineno}: {node.value!r}"
        for node in constants(ast.parse(file.read_text(encoding="utf-8")))
        if node.value in NAMES and node.value not in expected
    }
    assert found == set()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_long_module_says_why(file):
    text = file.read_text(encoding="utf-8")
    if len(text.splitlines()) > LONGEST:
        assert REASON in (ast.get_docstring(ast.parse(text)) or "").lower()


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_package_uses_anothers_private_names(file):
    """Only `_errors` and `_paths`, which belong to all, start with an underscore."""
    own = file.relative_to(PACKAGE).parts[0]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cka_sr_jax."):
            package, *rest = node.module.split(".")[1:]
            private = [part for part in rest if part.startswith("_")]
            private += [alias.name for alias in node.names if alias.name.startswith("_")]
            if package != own and private:
                found.append(f"line {node.lineno}: {node.module} {', '.join(private)}")
    assert found == []
