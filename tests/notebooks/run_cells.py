"""Runs a notebook's code cells in one namespace, as a notebook does, in this process.

  python run_cells.py NOTEBOOK SETTINGS

It leaves out the cell with the tag "install", and runs SETTINGS after the one with the tag
"parameters". What ends a cell it shows as a notebook would: it prints the type and how it is shown.
"""

import ast
import json
import sys
from pathlib import Path


def show(value):
    """Print how a notebook shows a value, and make it."""
    for name in ("_repr_html_", "_repr_png_"):
        if hasattr(value, name) and getattr(value, name)():  # Matplotlib has one that gives None
            print(f"shown: {type(value).__name__}{name}")
            return
    print(f"shown: {value!r}")


def run_cell(source, scope):
    """Run a cell's code, and show the value that it ends with."""
    *body, last = ast.parse(source).body
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(body, []), "cell", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
        if value is not None:
            show(value)
    else:
        exec(compile(ast.Module([*body, last], []), "cell", "exec"), scope)


def main():
    """Run what the command line says."""
    notebook, settings = Path(sys.argv[1]), sys.argv[2]
    scope = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "install" in tags:
            continue
        run_cell("".join(cell["source"]), scope)
        if "parameters" in tags:
            exec(settings, scope)


if __name__ == "__main__":
    main()
