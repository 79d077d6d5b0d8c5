"""ResNet-20 on CIFAR-10 with GraNet (Liu et al. 2021) to 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_granet.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network. The authors report ResNet-50 at 95 %: 94.38, and 94.44
from dense.
Cost: 1.8e15 FLOPs as if dense. Not timed.

Recipe: start at density 0.5 with ERK. Every 1000 steps prune on the cubic schedule, which ends at
epoch 80 (28,080 steps), then regrow by gradients; the drop fraction falls on a cosine from 0.5 to
0.005 through the whole run. From dense: --config.sparsity.initial_density=1.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
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
