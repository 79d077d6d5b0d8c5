"""The paper's table 5, AugCKA-SR: RST, ResNet-20, CIFAR-100 at six sparsities.

  python launch.py --config=configs/paper/table5_augcka_cifar100.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table5_augcka_cifar100 --value=0.1

The mean biased CKA of all pairs of block outputs, also across stages, on all samples of every
batch, at the reference's beta of 0.1. The paper's figures are in configs/paper/cifar100_resnet20_rst.py;
they select on the test set and train on all images, see table5_rst_cifar100.py.
36 runs; the 18 at beta 0 train what those of table5_rst_cifar100 do.
"""

from ml_collections import ConfigDict

from configs.paper.table5_rst_cifar100 import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.penalty.pairs = "all"
    config.penalty.reduction = "mean"
    config.penalty.debiased = False
    config.penalty.samples = -1
    config.penalty.every = 1
    config.grid.penalty = ConfigDict({"beta": (0.0, 0.1)})
    return config
