"""Bytes of a pruned model's parameters in each form, at four densities.

  python benchmarks/export_sizes.py

Prints two tables, for the 784-300-100-10 MLP and for ResNet-20, with random weights and random
masks (ERK). Sizes do not depend on the values, but for npz, whose compression finds the zeros. The
dense file has no masks here; they add a byte for each weight. A BCOO matrix is in memory.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from output import print_table

from cka_sr_jax._paths import replace_leaves
from cka_sr_jax.export import load_safetensors, save_safetensors, to_bcoo
from cka_sr_jax.models import create_model
from cka_sr_jax.sparsity import layer_counts, layers_of, leaf_paths, masks_from_paths

DENSITIES = (0.2, 0.1, 0.05, 0.02)
MODELS = {"mlp": (28, 28, 1), "resnet20": (32, 32, 3)}


def sizes(params: Any, masks: Any, folder: Path) -> list[int]:
    """Bytes of dense safetensors, sparse safetensors, BCOO and compressed npz."""
    dense, sparse, npz = (folder / name for name in ("dense", "sparse", "compressed.npz"))
    save_safetensors(dense, {"params": params})
    save_safetensors(sparse, {"params": params}, masks, sparse=True)
    jax.tree.map(
        np.testing.assert_array_equal, load_safetensors(sparse).variables["params"], params
    )
    np.savez_compressed(npz, **{path: np.asarray(leaf) for path, leaf in leaf_paths(params)})
    bcoo = sum(leaf.nbytes for leaf in jax.tree.leaves(to_bcoo(params, masks)))
    return [dense.stat().st_size, sparse.stat().st_size, bcoo, npz.stat().st_size]


def pruned(params: Any, density: float) -> tuple[Any, Any]:
    """Random weights of these shapes, and random masks of this density that are applied."""
    rng = np.random.default_rng(0)
    weights = {path: rng.normal(size=leaf.shape) for path, leaf in leaf_paths(params)}
    weights = {path: weight.astype(np.float32) for path, weight in weights.items()}
    masks = {}
    layers = {path: layer.dims for path, layer in layers_of(params).items()}
    for path, count in layer_counts(layers, density, "erk").items():
        mask = np.arange(weights[path].size) < count
        masks[path] = rng.permutation(mask).reshape(weights[path].shape)
        weights[path][~masks[path]] = 0  # a product would give -0, which compresses worse
    return replace_leaves(params, weights), masks_from_paths(params, masks)


def main() -> None:
    """Print the tables."""
    for name, image in MODELS.items():
        model, x = create_model(name, 10), jax.ShapeDtypeStruct((1, *image), np.float32)
        init = partial(model.init, jax.random.key(0), train=False)
        shapes = jax.eval_shape(init, x)["params"]
        rows = []
        for density in DENSITIES:
            params, masks = pruned(shapes, density)
            with tempfile.TemporaryDirectory() as folder:
                found = sizes(params, masks, Path(folder))
            rows.append([f"{density:g}", *(f"{size:,}" for size in found)])
        print_table(
            f"Bytes of {name}",
            ["density", "safetensors", "sparse safetensors", "BCOO", "npz, compressed"],
            rows,
        )


if __name__ == "__main__":
    main()
