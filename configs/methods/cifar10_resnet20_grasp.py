"""ResNet-20 on CIFAR-10, pruned before training by GraSP (Wang et al. 2020), with CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_grasp.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network. The authors report ResNet-32 of twice the width: 91.39
at 95 % (from memory, not checked).
Cost: 1.8e15 FLOPs as if dense. Not timed.

Recipe of GraSP: 160 epochs, learning rate 0.1 divided by 10 at half and three quarters, weight
decay 1e-4, batch 128. SNIP or SynFlow: --config.sparsity.rule=snip or synflow. To keep only the
layers' densities and place the weights at random, as in the paper on random pruning:
--config.sparsity.shuffle=True.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.optimizer.weight_decay = 1e-4
    config.sparsity.rule = "grasp"
    return config
