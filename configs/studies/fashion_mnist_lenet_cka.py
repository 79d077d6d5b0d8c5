"""Fashion-MNIST, a sparse LeNet-5: CKA-SR with convolutions and without BatchNorm.

Not in the paper: its claim, tried on a small convolutional network that a CPU can train.

  python launch.py --config=configs/studies/fashion_mnist_lenet_cka.py --grid --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_lenet_cka --rows=sparsity.density

Expected: test accuracy 0.67 at density 0.02 and 0.10 (chance) at 0.005, at every beta up to 1e-2.
Cost: 24 runs of 3 epochs, about a minute each on two CPU cores.

The beta is chosen on validation data among three. More densities and betas, into the same folder:
--config.grid.sparsity.density="(0.05,)"
--config.grid.penalty.beta="(0.0, 1e-4, 1e-3, 1e-2, 1e-1)", and 0.02 with "(1e-1,)".
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_lenet_rules import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.train.epochs = 3.0
    config.penalty.samples = 8
    config.grid.sparsity = ConfigDict({"density": (0.02, 0.005)})
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-4, 1e-3, 1e-2)})
    return config
