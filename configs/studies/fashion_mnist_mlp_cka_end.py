"""Fashion-MNIST, a deep sparse MLP: does CKA-SR help if it is on early only?

Not in the paper, whose penalty is on from the first step to the last. Beta is 1e-2, which lowers
similarity much and costs accuracy in whole runs. The grid ends the penalty at a share of the run; 0
is no penalty at all.

  python launch.py --config=configs/studies/fashion_mnist_mlp_cka_end.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_mlp_cka_end --field=penalty.end \\
    --rows=sparsity.rule,sparsity.density

Expected: no gain. Mean test accuracy at end 0, 0.1 and 0.5: rst 0.807, 0.807, 0.804; rigl 0.836,
0.834, 0.832.
Cost: 30 runs of 5,000 steps, about 20 seconds each on two CPU cores.

The share is chosen on validation data among two.
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
