"""Parameters, FLOPs and time of networks before and after their pruned channels are removed.

  python benchmarks/compact.py

An MLP 784-1024-1024-1024-10 at half the units, ResNet-20 at half the channels, and "2x ResNet-20",
of twice the usual width, at half of it: all pruned by `channel_masks`, with random weights. "MLP,
merged" is the MLP with two of its three hidden layers merged, as layer sparsity does it. Times are
those of one compiled call in evaluation mode, in turns: of the masked model with its zeros, and of
the one without them. "time" is their ratio, and "FLOPs" what it would be if time followed FLOPs;
the aim is a "time / FLOPs" of at most 1.25. "error" is the largest difference of the two outputs,
relative to the largest output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from output import print_table

from cka_sr_jax.accounting import interleaved_seconds, kernel_positions, layer_rows, total_row
from cka_sr_jax.layer_sparsity import Affine, from_mlp, merge_layers, to_mlp_params
from cka_sr_jax.models import MLP, compact, create_model, tied_channels
from cka_sr_jax.sparsity import apply_masks, channel_masks, masks_from_paths

# The model, its options, the images, and the batch sizes with the calls in one timing of each.
MODELS = {
    "MLP": ("mlp", {"hidden": (1024,) * 3}, (28, 28, 1), {128: 10, 1024: 2}),
    "ResNet-20": ("resnet20", {}, (32, 32, 3), {32: 2, 128: 1}),
    "2x ResNet-20": ("resnet20", {"width": 32}, (32, 32, 3), {32: 1}),
}
REPEATS = 11
COLUMNS = [
    "network", "batch", "weights", "after", "ms", "after", "time", "FLOPs", "time / FLOPs", "error",
]  # fmt: skip


class Network(NamedTuple):
    """A model, its variables, and what it costs."""

    model: Any
    variables: Any
    parameters: int
    flops: int

    def call(self, x: jax.Array) -> Callable[[], jax.Array]:
        """A compiled forward pass on these images."""
        forward = jax.jit(partial(self.model.apply, train=False))
        return lambda: forward(self.variables, x)


def half(name: str) -> tuple[Network, Network]:
    """A network with half its channels pruned: masked, and without them."""
    kind, options, image, _ = MODELS[name]
    model, x = create_model(kind, 10, **options), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), jnp.ones((1, *image)))
    masks = channel_masks(variables["params"], 0.5, exclude="head", tied=tied_channels(model))
    small = compact(model, variables, masks, x)
    before, after = total_row(small.before), total_row(small.after)
    masked = {**variables, "params": apply_masks(variables["params"], masks)}
    return (
        Network(model, masked, before.parameters, before.flops_dense),
        Network(small.model, small.variables, after.parameters, after.flops_dense),
    )


def merged() -> tuple[Network, Network]:
    """The MLP with two layers whose weights are not negative, and without them."""
    _, options, image, _ = MODELS["MLP"]
    model, x = MLP(10, **options), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), jnp.ones((1, *image)))
    first, *inactive, head = from_mlp(variables["params"])
    # Small, as what is left after layer sparsity's penalty: their outputs stay near their inputs'.
    inactive = [Affine(abs(layer.kernel) / 30, abs(layer.bias)) for layer in inactive]
    chain = (first, *inactive, head)
    _, params = to_mlp_params(chain)
    hidden, fewer = to_mlp_params(merge_layers(chain))
    return network(model, params, x), network(MLP(10, hidden), fewer, x)


def network(model: Any, params: Any, x: Any) -> Network:
    """A dense network and its costs."""
    variables = {"params": params}
    masks = masks_from_paths(params, {})
    total = total_row(layer_rows(params, masks, kernel_positions(model, variables, x)))
    return Network(model, variables, total.parameters, total.flops)


def rows_of(label: str, name: str, before: Network, after: Network) -> list[list[str]]:
    """A row for each batch size."""
    _, _, image, batches = MODELS[name]
    rows = []
    for batch, inner in batches.items():
        x = jax.random.normal(jax.random.key(1), (batch, *image))
        calls = {"before": before.call(x), "after": after.call(x)}
        old, new = (np.asarray(call()) for call in calls.values())
        seconds = interleaved_seconds(calls, REPEATS, dict.fromkeys(calls, inner))
        time, flops = seconds["after"] / seconds["before"], after.flops / before.flops
        row = [
            label,
            str(batch),
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            f"{1e3 * seconds['before']:.2f}",
            f"{1e3 * seconds['after']:.2f}",
            f"{time:.3f}",
            f"{flops:.3f}",
            f"{time / flops:.2f}",
            f"{np.abs(new - old).max() / np.abs(old).max():.0e}",
        ]
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    rows = [row for name in MODELS for row in rows_of(f"{name}, half", name, *half(name))]
    rows += rows_of("MLP, merged", "MLP", *merged())
    versions = ", ".join(f"{name} {version(name)}" for name in ("jaxlib", "flax", "numpy"))
    print_table(f"Masked and removed ({versions})", COLUMNS, rows)


if __name__ == "__main__":
    main()
