"""ResNet-20 on CIFAR-10 with RigL (Evci et al. 2020) at 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_rigl.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network. WRN-22-2 at 80 % has 92.6 in the reproducibility
report, and 93.1 with ERK.
Cost: 1.8e15 FLOPs as if dense. 6 to 13 hours on two CPU cores.

Recipe of RigL on CIFAR for the rule: an update every 100 steps until three quarters of the run,
drop fraction 0.3 on a cosine.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
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
