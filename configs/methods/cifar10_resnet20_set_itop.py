"""ResNet-20 on CIFAR-10 with SET-ITOP (Liu et al. 2021) at 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_set_itop.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network.
Cost: 1.8e15 FLOPs as if dense. Not timed.

In-time over-parametrization: updates 1500 steps apart through the whole run, drop fraction on a
cosine from 0.5 to 0.005. "explored" in the result is the R_s of the authors, who train 250 epochs.
RigL-ITOP: --config.sparsity.rule=rigl --config.sparsity.update_every=4000.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
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
