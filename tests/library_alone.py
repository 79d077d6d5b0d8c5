"""Imports every library module and runs the pages' blocks, in a process without the lab.

  python library_alone.py REPOSITORY imports|blocks

`test_library.py` runs it. An import statement of the package may name the library's own modules,
the standard library and what `pip install .` brings; all else is refused, even where it is
installed, since jax and flax bring packages of theirs (scipy, absl, rich, Orbax).
"""

import builtins
import importlib
import re
import sys
from pathlib import Path

LIBRARY = (
    *("similarity", "sparsity", "layer_sparsity", "accounting"),
    *("_dtypes", "_errors", "_paths"),
)
LAB = (
    "__main__",
    "launch",
    "models",
    "data",
    "export",
    "training",
    "workflows",
    "sweeps",
    "analysis",
    "report",
)
DEPENDENCIES = {"flax", "jax", "jaxlib", "jaxtyping", "numpy", "optax"}
PAGES = ("README.md", "docs/own_models.md", "docs/methods.md")
RAN = "this block ran"
# jaxlib brings ml_dtypes, and imports it from C++ in the name of whoever called.
ALLOWED = {"__future__", *sys.stdlib_module_names, *DEPENDENCIES, "ml_dtypes"}

import_any = builtins.__import__


def refusal(importer: str, name: str) -> str | None:
    """Why this module of the package must not import that one; None if it may."""
    top, *rest = name.split(".")
    if top == "cka_sr_jax":
        if rest and rest[0] not in LIBRARY:
            return f"{importer} imports {name}, which is not part of the library."
    elif top not in ALLOWED:
        return f"{importer} imports {name}, which `pip install .` does not promise."
    return None


def import_library_only(name, globals=None, locals=None, fromlist=(), level=0):
    """`__import__` for statements outside the package, and its refusals inside."""
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == "cka_sr_jax" and (sentence := refusal(importer, name)):
        raise ImportError(sentence)
    return import_any(name, globals, locals, fromlist, level)


def library_modules() -> list[str]:
    """Every module of the library, as installed, found without importing it."""
    package = Path(import_any("cka_sr_jax").__file__).parent
    files = sorted(file.relative_to(package.parent) for file in package.rglob("*.py"))
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    return [name for name in names if name.count(".") == 0 or name.split(".")[1] in LIBRARY]


def blocks(repository: Path) -> list[str]:
    """The Python blocks of the library's pages, but those that use the lab."""
    text = "".join((repository / page).read_text(encoding="utf-8") for page in PAGES)
    lab = re.compile(rf"cka_sr_jax\.({'|'.join(LAB)})\b")
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in found if not lab.search(block)]


def main() -> None:
    """Do what the command line says, and print what was done."""
    repository, what = Path(sys.argv[1]), sys.argv[2]
    builtins.__import__ = import_library_only
    if what == "imports":
        for name in library_modules():
            importlib.import_module(name)
            print(name)
    else:
        for i, block in enumerate(blocks(repository)):
            exec(compile(block, f"block {i}", "exec"), {"__name__": "__main__"})
            print(RAN)


if __name__ == "__main__":
    main()
