"""Is inference with sparse kernels faster than with masked ones, and from which density on?

  python benchmarks/sparse_inference.py

An MLP 784-1024-1024-1024-10 in float32 with random weights and random masks on its three wide
kernels; the last kernel stays dense. Prints the milliseconds of one forward pass, in turns, by:

- dense: the masked kernels with their zeros, in one `jit`;
- BCOO: `to_bcoo` kernels, `x @ kernel`, in one `jit`;
- BCOO.T and BCSR.T: transposed kernels from the left, `(kernel.T @ x.T).T`, for which JAX has
  kernels of its own on CPU, in one `jit`;
- scipy: `csr_array` kernels from the left, in NumPy.

"best" is the fastest sparse one's share of dense time: sparsity pays where it is below 1. Every
output is compared with the dense one's.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
from jax.experimental.sparse import BCSR
from output import print_table

from cka_sr_jax import get_masks, make_rule, sparse_init, sparsify
from cka_sr_jax.accounting import interleaved_times
from cka_sr_jax.export import to_bcoo

WIDTHS = (784, 1024, 1024, 1024, 10)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
BATCHES = {1: 20, 128: 2, 1024: 1}  # {batch size: calls in one timing}
REPEATS = 9
RIVALS = ("dense", "BCOO", "BCOO.T", "BCSR.T", "scipy")


def masked_mlp(density: float) -> tuple[list[dict[str, jax.Array]], Any]:
    """Layers {"kernel", "bias"} with random masks but in the last one, and the masks."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) - 1)
    params = [
        {"kernel": jax.random.normal(key, (n, m)) * (2 / (density * n)) ** 0.5, "bias": jnp.ones(m)}
        for key, n, m in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]
    last = f"{len(params) - 1}/kernel"
    rule = make_rule("rst", density=density, distribution="uniform", exclude=last)
    tx = sparsify(optax.sgd(0.0), rule)
    params, state = sparse_init(tx, params)
    return params, get_masks(state)


def forward(layers: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    """ReLU between layers `x @ kernel + bias`."""
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def forward_left(layers: list[dict[str, Any]], x: Any, xp: Any = jnp) -> Any:
    """The same with kernels [outputs, inputs], on columns."""
    x = x.T
    for layer in layers[:-1]:
        x = xp.maximum(layer["kernel"] @ x + layer["bias"][:, None], 0)
    return (layers[-1]["kernel"] @ x + layers[-1]["bias"][:, None]).T


def transposed(layers: list[dict[str, Any]], convert: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Transposed kernels, converted but for the last layer's."""
    last = {**layers[-1], "kernel": layers[-1]["kernel"].T}
    return [{**layer, "kernel": convert(layer["kernel"].T)} for layer in layers[:-1]] + [last]


def calls_of(density: float, batch: int) -> dict[str, Callable[[], Any]]:
    """The rivals as functions without arguments."""
    params, masks = masked_mlp(density)
    x = jax.random.normal(jax.random.key(1), (batch, WIDTHS[0]))
    bcoo = to_bcoo(params, masks)
    left = transposed(bcoo, lambda kernel: kernel.sort_indices())
    rows = transposed(bcoo, lambda kernel: BCSR.from_bcoo(kernel.sort_indices()))
    arrays = jax.tree.map(np.asarray, params)
    csr, inputs = transposed(arrays, scipy.sparse.csr_array), np.asarray(x)
    right_jit, left_jit = jax.jit(forward), jax.jit(forward_left)
    return {
        "dense": lambda: right_jit(params, x),
        "BCOO": lambda: right_jit(bcoo, x),
        "BCOO.T": lambda: left_jit(left, x),
        "BCSR.T": lambda: left_jit(rows, x),
        "scipy": lambda: forward_left(csr, inputs, np),
    }


def row(density: float, batch: int) -> list[str]:
    """Milliseconds of each rival, and the best sparse one's share of the dense time."""
    calls = calls_of(density, batch)
    outputs = {name: np.asarray(call()) for name, call in calls.items()}
    for name, output in outputs.items():
        error = np.abs(output - outputs["dense"]).max() / np.abs(outputs["dense"]).max()
        if error > 1e-4:
            raise AssertionError(f"{name} differs from dense by {error:.0e} of the largest output")
    times = interleaved_times(calls, REPEATS, dict.fromkeys(calls, BATCHES[batch]))
    shares = {
        name: np.divide(times[name], times["dense"]) for name in RIVALS if name != "dense"
    }  # of the same repeat
    best = min(shares, key=lambda name: np.median(shares[name]))
    low, median, high = np.quantile(shares[best], (0.25, 0.5, 0.75))
    milliseconds = (f"{1e3 * np.median(times[name]):.2f}" for name in RIVALS)
    share = f"{median:.2f} ({low:.2f} to {high:.2f})"
    return [str(batch), f"{density:g}", *milliseconds, best, share]


def main() -> None:
    """Print the table."""
    rows = [row(density, batch) for batch in BATCHES for density in DENSITIES]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jaxlib", "numpy", "scipy"))
    print_table(
        f"Sparse inference ({versions})",
        ["batch", "density", *(f"{name} (ms)" for name in RIVALS), "best", "of dense (quartiles)"],
        rows,
    )


if __name__ == "__main__":
    main()
