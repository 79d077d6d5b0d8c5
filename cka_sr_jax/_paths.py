"""Paths of a tree's leaves, the patterns that select them, and their natural order."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf, in the tree's order.

    A path joins the names and indices that lead to the leaf. The array inside an `nnx.Variable` has
    the path of the variable.

    >>> leaf_paths({"head": {"kernel": 1, "bias": 2}, "blocks": [3]})
    [('blocks/0', 3), ('head/bias', 2), ('head/kernel', 1)]
    """
    leaves: list[tuple[str, Any]] = []
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    for keys, node in nodes:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        # A variable holds one array, or several in a tree of its own.
        inside = jax.tree_util.tree_leaves_with_path(node) if _is_variable(node) else [((), node)]
        for below, leaf in inside:
            more = jax.tree_util.keystr(below[1:], simple=True, separator="/")
            leaves.append(("/".join(filter(None, (name, more))), leaf))
    return leaves


def replace_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with other arrays at the named leaves.

    >>> replace_leaves({"kernel": 1, "bias": 2}, {"bias": 3})
    {'bias': 3, 'kernel': 1}
    """
    paths = iter([path for path, _ in leaf_paths(tree)])
    return jax.tree.map(lambda leaf: leaves.get(next(paths), leaf), tree)


def _is_variable(node: Any) -> bool:
    # Where there is a variable, nnx is imported; importing it here would cost half a second.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def matches(pattern: str, path: str) -> bool:
    """Whether a path, or a run of consecutive parts of it, matches a pattern.

    Every option that takes path patterns (`exclude`, `include`, `layers`, a mapping as
    `distribution`) takes these. A pattern is a shell glob, part by part: `*`, `?` and `[1-9]` stay
    between two slashes. It may name a layer, the layer's parent, or the end of a path alone. A
    leading "/" ties it to the start of the path. Upper and lower case differ.

      pattern           matches
      head/kernel       head/kernel, decoder/head/kernel
      head              all in any `head`: head/kernel, head/bias, decoder/head/kernel
      kernel            every kernel
      stage1_*          all in stage1_block0, stage1_block1, ...
      blocks/*/conv     blocks/0/conv/kernel, but not blocks/0/attention/conv/kernel
      /Dense_0/kernel   Dense_0/kernel, but not Block_3/Dense_0/kernel
      *                 everything

    >>> matches("head", "decoder/head/kernel"), matches("stage*/kernel", "stage1/conv/kernel")
    (True, False)
    """
    globs, parts = pattern.removeprefix("/").split("/"), path.split("/")
    runs = [parts[i : i + len(globs)] for i in range(len(parts) - len(globs) + 1)]
    if pattern.startswith("/"):
        runs = runs[:1]
    return any(all(map(fnmatch.fnmatchcase, run, globs)) for run in runs)


def natural_key(path: str) -> list[list[str | int]]:
    """Sort key that compares part by part and numbers by value: block2 before block10.

    >>> sorted(["block10/kernel", "block2/kernel"], key=natural_key)
    ['block2/kernel', 'block10/kernel']
    """
    parts = [re.split(r"(\d+)", part) for part in path.split("/")]  # numbers at odd places
    return [[int(text) if i % 2 else text for i, text in enumerate(texts)] for texts in parts]
