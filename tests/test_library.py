"""The library needs jax, flax, optax, numpy and jaxtyping, and nothing of the lab."""

import ast
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import cka_sr_jax
from tests.library_alone import LAB, LIBRARY, RAN, blocks, refusal

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "cka_sr_jax"
LIBRARY_FILES = sorted(
    file
    for part in LIBRARY
    for file in [PACKAGE / f"{part}.py", *(PACKAGE / part).rglob("*.py")]
    if file.exists()
)


def run_alone(what, python=sys.executable, folder=REPOSITORY, repository=REPOSITORY):
    """The lines that `library_alone.py` prints in a process of its own."""
    script = REPOSITORY / "tests" / "library_alone.py"
    done = subprocess.run(
        [python, script, repository, what],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_library_and_lab_are_the_whole_package():
    parts = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py")}
    assert {part.removesuffix(".py") for part in parts} <= {"__init__", *LIBRARY, *LAB}


@pytest.mark.parametrize("file", LIBRARY_FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_statement_imports_more_than_the_librarys_dependencies(file):
    """Statements inside functions too, which only a call would run."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.append(node.module)
    assert [sentence for name in names if (sentence := refusal(file.name, name))] == []


def test_every_library_module_imports_without_the_lab():
    modules = run_alone("imports")
    assert len(modules) == len(LIBRARY_FILES) + 1  # and the package itself


def test_plot_cka_needs_matplotlib_and_the_rest_does_not():
    """In a process that has none; then in one that lacks only what the figures do not need."""
    script = """
import sys
sys.modules["matplotlib"] = sys.modules["tensorboardX"] = None  # as if they were not installed
import cka_sr_jax
from cka_sr_jax import *
print(summary.__module__, "plot_cka" in dir(cka_sr_jax))
try:
    from cka_sr_jax import plot_cka
except ImportError as error:
    print(error)
del sys.modules["matplotlib"]
print(cka_sr_jax.plot_cka.__module__)
"""
    lines = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=REPOSITORY)
    assert lines.splitlines() == [
        "cka_sr_jax.accounting.summary True",
        "plot_cka draws with Matplotlib, which is not installed: pip install matplotlib.",
        "cka_sr_jax.report.plot",
    ]
    with pytest.raises(AttributeError, match="has no attribute 'plot_ckas'"):
        cka_sr_jax.plot_ckas  # noqa: B018


@pytest.mark.slow
def test_in_an_environment_with_only_the_librarys_dependencies(tmp_path):
    """The wheel, built from the sdist, in an empty environment: modules import, blocks run.

    Built from a copy, since setuptools leaves a build folder beside the sources.
    """
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / "cka_sr_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("cka_sr_jax-*.whl")
    assert list((tmp_path / "dist").glob("cka_sr_jax-*.tar.gz"))
    venv.create(tmp_path / "env", with_pip=True, symlinks=os.name != "nt")
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", wheel]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    version = subprocess.check_output([scripts / "cka-sr", "--version"], text=True)
    assert version == f"cka-sr {cka_sr_jax.__version__}\n"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lab = "matplotlib", "ml_collections", "sklearn", "tensorboardX", "tensorflow_datasets"
    found = f"import importlib.util as u; print([n for n in {lab} if u.find_spec(n)])"
    assert subprocess.check_output([python, "-c", found], text=True).strip() == "[]"
    assert "cka_sr_jax.sparsity.sparsify" in run_alone("imports", python, elsewhere)
    assert run_alone("blocks", python, elsewhere).count(RAN) == len(blocks(REPOSITORY)) > 5
