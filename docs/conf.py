"""How Sphinx builds the site: `make docs`."""

import re
from pathlib import Path

import cka_sr_jax

project, author = "cka_sr_jax", "the cka_sr_jax authors"
release = version = cka_sr_jax.__version__
html_title = f"cka_sr_jax {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_in_temp = True  # the tutorials write runs
nb_merge_streams = True  # what one cell prints is one block
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# Docstrings are read as Markdown on the terminal: `x` is code, and so is what is indented.
default_role = "literal"
autodoc_typehints = "none"  # shapes are in the signatures
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # or each attribute would be described twice

REPOSITORY = Path(__file__).parents[1]
# What is below each page; here, since GitHub would show it as code.
TREES = {
    "index": {
        "Tutorials": (
            "tutorials/plug_in", "tutorials/transformer", "tutorials/write_a_rule",
            "tutorials/paper_table", "tutorials/layer_sparsity", "tutorials/on_a_pod",
        ),
        "How to": (
            "own_models", "methods", "running", "sweeps", "layer_sparsity", "companions", "export",
            "config",
        ),
        "Explanations": (
            "explanations/why_debiased", "explanations/rules_in_pictures", "taxonomy",
            "explanations/reading_results",
        ),
        "What was measured": ("results/index", "speed"),
        "Reference": (
            "reference/library", "reference/similarity", "reference/sparsity",
            "reference/layer_sparsity", "reference/accounting", "reference/models",
            "reference/export", "reference/training", "reference/workflows", "reference/sweeps",
        ),
    },
    "results/index": {
        "Studies": (
            "paper_tables", "mlp", "energies", "lenet", "resnet", "dense", "other_rules", "early",
            "prune_once", "outliers", "few_images", "rules", "new_weights", "transformers",
            "tokens", "topology", "attentive", "ranks", "paper_commands",
        ),
    },
}  # fmt: skip
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Features:", "Yields:")


def _to_rst(app, what, name, obj, options, lines):
    """Mark indented blocks, tables and lists of a docstring for reStructuredText."""
    done, in_section, in_block, in_doctest = [], False, False, False
    for number, line in enumerate(lines):
        stripped, indented = line.strip(), line.startswith("  ")
        if stripped in SECTIONS:
            in_section = True
        elif stripped and not indented:
            in_section = False
        in_doctest = bool(stripped) and (in_doctest or stripped.startswith(">>>"))
        table = stripped.startswith("|") and not in_section
        block = (indented or table) and not in_section and not in_doctest
        before = lines[number - 1].strip() if number else ""
        if block and not in_block and (not before or table):
            done += ["", "::", ""] if not table or before else ["::", ""]
            in_block = True
        elif stripped and not block:
            in_block = False
        if in_block and stripped:
            done.append(f"  {line}")
        else:
            done.append(line if in_doctest else _escaped(line))
    lines[:] = done


def _escaped(line):
    """The line with `|`, `*` and a last `_` that stand for themselves, outside of code."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _links(app, docname, source):
    """Point links that leave docs/ at the repository's files, which are no pages."""
    base = Path(app.srcdir, docname).parent

    def outside(match):
        text, target = match[1], match[2]
        path = (base / target.partition("#")[0]).resolve()
        if target.startswith(("http", "#")) or path.is_relative_to(app.srcdir):
            return match[0]
        return f"`{path.relative_to(REPOSITORY)}`" if text.startswith("`") else text

    prose = re.split(r"(```.*?```)", source[0], flags=re.DOTALL)
    prose[::2] = [re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", outside, part) for part in prose[::2]]
    trees = [
        "\n".join(("", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""))
        for caption, pages in TREES.get(docname, {}).items()
    ]
    source[0] = "".join([*prose, *trees])


def setup(app):
    """Connect the two."""
    app.connect("autodoc-process-docstring", _to_rst)
    app.connect("source-read", _links)
