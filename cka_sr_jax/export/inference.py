"""A model's inference as one file that needs jax alone, by `jax.export`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cka_sr_jax.export.extra import needed

PLATFORMS = ("cpu", "cuda", "tpu")
_DIGEST_SIZE = hashlib.sha256().digest_size


def export_inference(
    apply: Callable[[Any, Any], Any],
    variables: Any,
    example: Any,
    path: str | Path,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write `x -> apply(variables, x)` with its weights to a file; one that is there is replaced.

    The file is a program for any batch size on any of the platforms, as `jax.export` serializes it.
    It needs neither the model's code nor this library: `load_inference` runs it, and so does

      jax.export.deserialize(bytearray(open(path, "rb").read())).call(x)

    Floating-point weights and inputs are float32. Integers keep their type. Pruned weights take as
    much room as all others. JAX promises to read a file for six months at least, so keep the
    weights too. It notes the source files, with their folders, that the program was made from.

    >>> import tempfile
    >>> apply = lambda variables, x: x @ variables["w"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_inference(apply, {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)), f"{folder}/model")
    ...     run = load_inference(f"{folder}/model")
    >>> run(jnp.ones((5, 2))).shape
    (5, 3)

    Args:
      apply: such as `lambda variables, x: model.apply(variables, x, train=False)`. It may not turn
        the batch size into a number, as `len(x)` does: `x.shape[0]` is a symbol here.
      variables: pytree of arrays.
      example: an input [b, ...], of which the type and the shape after b count.
      path: the file; its name is used as it is.
      platforms: of "cpu", "cuda", "rocm" and "tpu".

    Raises:
      ValueError: an example without a batch axis; an unknown platform; a batch size that `apply`
        turns into a number.
      ModuleNotFoundError: flatbuffers is not installed.
    """
    needed("flatbuffers", "to write programs of jax.export")
    shape = np.shape(example)
    dtype: Any = jnp.result_type(example)
    if not shape:
        raise ValueError("the example is a single number: pass a batch [b, ...] of inputs.")
    if unknown := set(platforms) - {*PLATFORMS, "rocm"}:
        raise ValueError(
            f"platforms={tuple(platforms)} has {min(unknown)!r}: expected some of cpu, cuda, rocm "
            "and tpu."
        )
    dtype = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
    weights = jax.tree.map(_float32, variables)
    (batch,) = export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *shape[1:]), dtype)
    inference = jax.jit(lambda x: apply(weights, x))
    try:
        exported = export.export(inference, platforms=tuple(platforms))(x)
    except TypeError as error:
        if "_DimExpr" not in str(error):  # jax's class of symbols
            raise
        raise ValueError(
            "apply turns the batch size into a number, and the file is for any batch size: write "
            "x.shape[0] in place of len(x)."
        ) from error
    content = bytes(exported.serialize())
    Path(path).write_bytes(content + _digest(content))


def _digest(content: bytes) -> bytes:
    """At the end of a file, where jax does not look."""
    return hashlib.sha256(content).digest()


def _float32(leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


class Inference:
    """The function of a file of `export_inference`."""

    def __init__(self, exported: export.Exported) -> None:
        """Nothing is compiled yet."""
        self._call = jax.jit(exported.call)
        self._text = f"{exported.in_avals[0].str_short()} on {', '.join(exported.platforms)}"

    def __call__(self, x: Any) -> Any:
        """The outputs for x [b, ...]; the first call with each batch size compiles."""
        return self._call(x)

    def __repr__(self) -> str:
        """The type and the shape of its inputs, and where it runs."""
        return f"Inference({self._text})"


def load_inference(path: str | Path) -> Inference:
    """The function x [b, ...] -> outputs of a file of `export_inference`.

    It is compiled at the first call with each batch size. The file is a program: run those of
    people whom you trust.

    Raises:
      ValueError: the file is damaged or of another kind. A call raises it for an x of another type
        or shape than the example's.
      ModuleNotFoundError: flatbuffers is not installed.
    """
    needed("flatbuffers", "to read programs of jax.export")
    whole = Path(path).read_bytes()
    content, digest = whole[:-_DIGEST_SIZE], whole[-_DIGEST_SIZE:]
    if digest != _digest(content):
        raise ValueError(
            f"{path} is damaged or was not written by export_inference: write it with that."
        )
    return Inference(export.deserialize(bytearray(content)))
