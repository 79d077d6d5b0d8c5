"""Fashion-MNIST, a deep sparse MLP: does CKA-SR help as long as it is on early only?

No table of the paper, whose penalty is on from the first step to the last. Beta 1e-2, which lowers
the similarity much and in whole runs costs accuracy, up to a share of the run; 0 is no penalty.

  python launch.py --config=configs/studies/fashion_mnist_mlp_cka_end.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_mlp_cka_end --field=penalty.end \\
    --rows=sparsity.rule,sparsity.density

30 runs of 5,000 steps. The share is chosen on validation data among two.
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_mlp_cka import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.penalty.beta = 1e-2
    config.grid.sparsity.rule = ("rst", "rigl")
    config.grid.sparsity.density = (0.01,)
    config.grid.penalty = ConfigDict({"end": (0.0, 0.1, 0.5)})
    return config
