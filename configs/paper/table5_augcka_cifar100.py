"""The paper's table 5, AugCKA-SR: RST, ResNet-20, CIFAR-100 at six sparsities.

  python launch.py --config=configs/paper/table5_augcka_cifar100.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table5_augcka_cifar100 --value=0.1

Expected: the paper's figures are in configs/paper/cifar100_resnet20_rst.py. They are the best test
accuracies of networks trained on all images; this grid chooses on held-out images instead, as
table5_rst_cifar100.py does.
Cost: 36 runs, 63e15 FLOPs. The 18 runs at beta 0 repeat those of table5_rst_cifar100.py.

The penalty is the mean biased CKA of all pairs of block outputs, also between stages, on all
samples of every batch. Its beta of 0.1 is the reference's.
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
