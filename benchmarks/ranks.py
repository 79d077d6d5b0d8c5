"""The ranks of "Rank Diminishing in Deep Neural Networks" on networks trained here, by layer.

  python benchmarks/ranks.py TFDS_FOLDER

The MLP of configs/studies/fashion_mnist_mlp_energies.py (six hidden layers of 256 units, RST at
density 0.05) with 2,000 steps and 5 seeds, without a penalty and with the log energy over neighbors
at beta 1e-2. Prints, as mean ± 95 % t interval over the seeds, for each hidden layer: the effective
rank of the features of 2,000 validation images; the perturbed PCA rank around an image and the
partial rank of the Jacobian with respect to 14x14 pixels, means over 5 images. Then the
classification dimension of the last layer on the same 2,000 images, of 256, and the share of each
class's logit that the other classes' logits leave unexplained, mean over classes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/

import jax
import jax.numpy as jnp
import numpy as np
from output import interval
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax.data import load_dataset, normalize
from cka_sr_jax.models import create_model
from cka_sr_jax.report import markdown_table
from cka_sr_jax.similarity.rank import (
    classification_dimension,
    effective_rank,
    independence_deficit,
    partial_rank,
    perturbed_pca_rank,
)
from cka_sr_jax.training import load_variables
from cka_sr_jax.training.build import image_statistics
from configs.studies import fashion_mnist_mlp_energies

BETAS, SEEDS, IMAGES, SINGLE = (0.0, 1e-2), range(5), 2000, 5
MEASURES = ("effective rank", "perturbed PCA rank", "partial rank")


def measured(beta: float, seed: int, folder: str) -> dict[str, list[float]]:
    """{measure: a number for each layer, or one} of one run."""
    config = fashion_mnist_mlp_energies.get_config()
    config.grid, config.seeds = {}, ()
    config.update_from_flattened_dict({
        "data.dir": folder, "seed": seed, "train.steps": 2000, "penalty.beta": beta,
        "sparsity.rule": "rst", "sparsity.density": 0.05,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as workdir:
        workflows.run(config, workdir, Console(quiet=True))
        variables = load_variables(workdir)
    data = load_dataset(config.data)
    mean, std = image_statistics(config, data)
    images = normalize(jnp.asarray(data.validation_images[:IMAGES]), mean, std)
    labels = jnp.asarray(data.validation_labels[:IMAGES])
    model = create_model(config.model.name, data.num_classes, **config.model.options)

    def features(x: Any) -> Any:
        _, sown = model.apply(variables, x, train=False, mutable=["features"])
        return jax.tree.leaves(sown["features"])

    last = jax.jit(features)(images)
    head = variables["params"]["head"]

    def logits_of(f: Any) -> Any:
        return f @ head["kernel"] + head["bias"][None]

    patch = np.s_[7:21, 7:21]
    keys = jax.random.split(jax.random.key(seed), SINGLE)
    around = [perturbed_pca_rank(features, images[i], keys[i]) for i in range(SINGLE)]
    within = [
        partial_rank(lambda x: [f[0] for f in features(x[None])], images[i], patch)
        for i in range(SINGLE)
    ]
    deficit = independence_deficit(logits_of(last[-1])).unexplained
    return {
        "effective rank": [float(rank) for rank in effective_rank(last)],
        "perturbed PCA rank": list(np.mean(np.array(around, float), axis=0)),
        "partial rank": list(np.mean(np.array(within, float), axis=0)),
        "classification dimension": [float(classification_dimension(last[-1], labels, logits_of))],
        "unexplained": [float(jnp.mean(deficit))],
    }


def main() -> None:
    """Print the two tables."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: ranks.py TFDS_FOLDER")
    found = {beta: [measured(beta, seed, sys.argv[1]) for seed in SEEDS] for beta in BETAS}
    rows = []
    for measure in MEASURES:
        for beta, runs in found.items():
            layers = np.array([run[measure] for run in runs]).T
            rows.append([measure, f"{beta:g}", *(interval(list(layer), 1) for layer in layers)])
    layers = [f"layer {i}" for i in range(1, len(rows[0]) - 1)]
    print(markdown_table(["measure", "beta", *layers], rows))
    rows = [
        [
            f"{beta:g}",
            interval([run["classification dimension"][0] for run in runs], 1),
            interval([run["unexplained"][0] for run in runs], 3),
        ]
        for beta, runs in found.items()
    ]
    print()
    print(markdown_table(["beta", "classification dimension", "unexplained"], rows))


if __name__ == "__main__":
    main()
