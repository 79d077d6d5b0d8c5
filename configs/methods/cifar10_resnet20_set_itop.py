"""ResNet-20 on CIFAR-10 with SET-ITOP (Liu et al. 2021) at 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_set_itop.py --config.data.dir=TFDS_FOLDER

In-time over-parametrization: updates 1500 steps apart through the whole run, drop fraction 0.5 on a
cosine to 0.005; the result's "explored" is the paper's R_s. RigL-ITOP:
--config.sparsity.rule=rigl --config.sparsity.update_every=4000. The authors train 250 epochs.
CKA-SR is on as in cifar10_resnet20_rst.py (table 2); --config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.sparsity.rule = "set"
    config.sparsity.update_every = 1500
    config.sparsity.drop_fraction = 0.5
    config.sparsity.final_drop_fraction = 0.005
    config.sparsity.end = 1.0
    return config
