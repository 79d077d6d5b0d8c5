"""VGG-19 on CIFAR-10 with GraNet (Liu et al. 2021) from dense to 90 % sparsity, and CKA-SR.

  python launch.py --config=configs/methods/cifar10_vgg19_granet.py --config.data.dir=TFDS_FOLDER

Expected: 93.80 without CKA-SR (--config.penalty.beta=0), and 93.85 for the dense network: figures of
the authors as a third party quotes them. No figure is known with CKA-SR. We have not run this config
to its end.
Cost: 17e15 FLOPs as if dense. Not timed.

Recipe as in cifar10_resnet20_granet.py, but from dense: every 1000 steps prune on the cubic
schedule, which ends at epoch 80 of 160, then regrow by gradients; the drop fraction falls on a cosine
from 0.5 to 0.005 through the whole run.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py). As there, a tenth of the
training images is for validation; the authors may have trained on all (--config.data.validation=0.0
--config.eval.select=last).
"""

from configs.methods.cifar10_resnet20_granet import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.model.name = "vgg19"
    config.model.options.width = 64
    config.sparsity.density = 0.1
    config.sparsity.initial_density = 1.0
    return config
