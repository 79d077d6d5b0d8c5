"""ResNet-20 on CIFAR-10 with gradual magnitude pruning to 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_gmp.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network. GraNet's authors report ResNet-50: 94.52 at 95 %.
Cost: 1.8e15 FLOPs as if dense. Not timed.

Recipe of GraNet's authors: every 1000 steps, from epoch 0 to epoch 80 of 160, prune on the cubic
schedule, all layers ranked together.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
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
