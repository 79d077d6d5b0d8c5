"""ResNet-20 on CIFAR-10 with gradual magnitude pruning to 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_gmp.py --config.data.dir=TFDS_FOLDER

The recipe of GraNet's authors: all layers ranked together every 1000 steps on the cubic schedule,
from epoch 0 to epoch 80 of 160. They report ResNet-50 (94.52 at 95 %), not this network.
CKA-SR is on as in cifar10_resnet20_rst.py (table 2); --config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.sparsity.rule = "gmp"
    config.sparsity.distribution = "global"
    config.sparsity.update_every = 1000
    config.sparsity.end = 0.5
    return config
