"""ResNet-20 on CIFAR-10 with GraNet (Liu et al. 2021) to 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_granet.py --config.data.dir=TFDS_FOLDER

From density 0.5 with ERK; every 1000 steps pruning to the cubic schedule of epochs 0 to 80 (28,080
steps), then regrowth by gradients, drop fraction 0.5 on a cosine to 0.005 through the run. From
dense: --config.sparsity.initial_density=1. The authors report ResNet-50 (94.38 at 95 %; 94.44 from
dense), not this network.
CKA-SR is on as in cifar10_resnet20_rst.py (table 2); --config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.sparsity.rule = "granet"
    config.sparsity.initial_density = 0.5
    config.sparsity.update_every = 1000
    config.sparsity.prune_end = 0.5  # step 28,080
    config.sparsity.drop_fraction = 0.5
    config.sparsity.end = 1.0
    return config
