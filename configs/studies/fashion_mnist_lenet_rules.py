"""Fashion-MNIST, LeNet-5 at density 0.02 under six rules.

No table of the paper: the second comparison of the rules in docs/results.md, without the penalty.

  python launch.py --config=configs/studies/fashion_mnist_lenet_rules.py --grid \\
    --config.data.dir=TFDS_FOLDER

18 runs of 5 epochs, about 3 minutes each on two cores. The dense network is the same grid with
--config.grid.sparsity.rule="('dense',)".
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
