"""What the name of a parameter says: whether it is a layer's weights, a norm's scale, or neither.

Flax, Haiku, Equinox, PyTorch's names and plain code each have their own.
"""

from __future__ import annotations

import re

# Flax's kernels, and what Haiku, Equinox and plain code call theirs.
WEIGHTS = ("kernel", "w", "weight")
# Words in the name of a parameter that is not a layer's weights.
OTHERS = {
    *("bias", "offset", "scale", "gain", "gamma", "temperature", "cls", "token", "tokens"),
    *("embed", "embedding", "embeddings", "emb", "wte", "wpe"),
    *("pe", "pos", "position", "positional"),
}
# Words in the name of a layer whose `weight` is a table that indices look up, a norm's or a bias.
TABLES = {"emb", "wte", "wpe", "pos", "position", "positional", "ln", "bias"}


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rsplit("/", 1)[-1]


def parent_of(path: str) -> str:
    """A path without its last part."""
    return path.rpartition("/")[0]


def words_of(name: str) -> list[str]:
    """The words of a name, without numbers: those of `ln_2` and of `LN2` are ["ln"]."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().split("_")
    return [word.rstrip("0123456789") for word in words if not word.isdigit()]


def is_other(path: str) -> bool:
    """Whether a parameter's name says that it is not a layer's weights."""
    return bool(OTHERS & set(words_of(name_of(path))))


def is_weight(path: str) -> bool:
    """Whether a parameter's name says that it is a layer's weights."""
    name = name_of(path)
    if (words_of(name) or [""])[0] not in WEIGHTS or is_other(path):
        return False
    # Flax calls an embedding's array `embedding`, and a norm's `scale`; others call them `weight`.
    return name == "kernel" or not (is_norm(path) or _is_table(path))


def _is_table(path: str) -> bool:
    layer = name_of(parent_of(path))
    return "embed" in layer.lower() or bool(TABLES & set(words_of(layer)))


def is_norm(path: str) -> bool:
    """Whether it is the scale of a normalization."""
    name, layer = name_of(path), name_of(parent_of(path))
    by_layer = "norm" in layer.lower() or "ln" in words_of(layer)
    return name in ("scale", "gamma", "gain") or (name == "weight" and by_layer)
