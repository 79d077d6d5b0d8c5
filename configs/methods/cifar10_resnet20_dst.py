"""ResNet-20 on CIFAR-10 with the learned thresholds of DST (Liu et al. 2020), and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_dst.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network. The density follows from alpha.
Cost: not timed.

Recipe, which the authors use for VGG-16: alpha 5e-6, batch 64, SGD at 0.1 divided by 10 at epochs
80 and 120 of 160, weight decay 1e-4.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.train.batch_size = 64
    config.optimizer.weight_decay = 1e-4
    config.eval.select = "last"
    config.sparsity.rule = "dst"
    config.sparsity.alpha = 5e-6
    return config
