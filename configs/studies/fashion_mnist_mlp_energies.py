"""Fashion-MNIST, a deep sparse MLP: a penalty that parts every layer from the next.

Not in the paper: the plain sum over all pairs parts layers into blocks and leaves some neighbors as
similar as they were (docs/results/mlp.md). Here neighbors alone are charged, by the logarithmic
energy of HE-CKA (arXiv 2411.00259), whose push grows the closer two layers are.

  python launch.py --config=configs/studies/fashion_mnist_mlp_energies.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_mlp_energies --rows=sparsity.rule --each

Expected: the most similar two neighbors at a CKA of 0.95 at beta 1e-3 and 0.56 at 1e-2, from 0.98; test
accuracy under rst 0.864, 0.863, 0.861 (docs/results/energies.md).
Cost: 90 runs of 5,000 steps, about 10 seconds each on two CPU cores.

The plain sum, over neighbors and over all pairs, each with a --workdir of its own:

  ... --config.penalty.energy=none --config.grid.penalty.beta="(1e-2, 0.02, 0.04, 0.1)" \\
    --workdir=...
  ... --config.penalty.energy=none --config.penalty.pairs=group --config.grid.penalty.beta="(1e-2,)" \\
    --workdir=...
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_mlp_cka import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.penalty.pairs = "neighbors"
    config.penalty.energy = "log"
    config.seeds = tuple(range(10))
    config.grid.sparsity = ConfigDict({"rule": ("rst", "rigl", "granet"), "density": (0.05,)})
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-3, 1e-2)})
    return config
