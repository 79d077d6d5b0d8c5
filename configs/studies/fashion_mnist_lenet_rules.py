"""Fashion-MNIST, LeNet-5 at density 0.02 under six methods.

Not in the paper: the second comparison of methods in docs/results/rules.md, without the penalty.

  python launch.py --config=configs/studies/fashion_mnist_lenet_rules.py --grid \\
    --config.data.dir=TFDS_FOLDER

Expected: mean test accuracy of three seeds: granet 0.78, synflow 0.77, rigl 0.76, gmp 0.75, set
0.74, rst 0.71. The dense network, --config.grid.sparsity.rule="('dense',)", has 0.88.
Cost: 18 runs of 5 epochs, 2 to 5 minutes each on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.quickstart.fashion_mnist_lenet import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.sparsity.density = 0.02
    config.sparsity.rescale = True
    config.penalty.beta = 0.0
    config.seeds = (0, 1, 2)
    rules = ("rst", "set", "rigl", "granet", "gmp", "synflow")
    config.grid.sparsity = ConfigDict({"rule": rules})
    return config
