"""ResNet-20 on CIFAR-10, pruned before training by GraSP (Wang et al. 2020), with CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_grasp.py --config.data.dir=TFDS_FOLDER

GraSP's training recipe: 160 epochs, learning rate 0.1 divided by 10 at half and three quarters,
weight decay 1e-4, batch 128. SNIP and SynFlow: --config.sparsity.rule=snip or synflow; their layer
ratios with random places, as the random-pruning paper takes them: --config.sparsity.shuffle=True.
The authors report ResNet-32 of twice the width (91.39 at 95 %, from memory), not this network.
CKA-SR is on as in cifar10_resnet20_rst.py (table 2); --config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.optimizer.weight_decay = 1e-4
    config.sparsity.rule = "grasp"
    return config
