"""ResNet-20 on CIFAR-10 with RigL (Evci et al. 2020) at 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_rigl.py --config.data.dir=TFDS_FOLDER

RigL's CIFAR recipe for its rule: an update every 100 steps until three quarters of the run, drop
fraction 0.3 on a cosine. Published figures are for other networks: WRN-22-2 at 80 % has 92.6 in the
reproducibility report, 93.1 with ERK.
CKA-SR is on as in cifar10_resnet20_rst.py (table 2); --config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.sparsity.rule = "rigl"
    config.sparsity.update_every = 100
    config.sparsity.drop_fraction = 0.3
    config.sparsity.end = 0.75
    return config
