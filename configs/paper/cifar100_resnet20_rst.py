"""ResNet-20 on CIFAR-100 at 95 % random static sparsity with CKA-SR: a run of the paper's table 5.

  python launch.py --config=configs/paper/cifar100_resnet20_rst.py --config.data.dir=TFDS_FOLDER

Expected: the paper's figures, one run each, by sparsity (1 - sparsity.density):

  sparsity      .70    .85    .90    .95    .98    .998
  beta = 0     65.42  60.37  56.96  47.27  33.74   2.95
  CKA-SR       65.60  60.86  57.25  48.26  34.44   3.32
  AugCKA-SR    65.85  60.89  57.02  48.39  34.60   3.04

They are the best TEST accuracies over the epochs: the reference trains on all training images and
chooses its weights on the test set. This config does the same, so that figures compare, and its
result and report say so. For an honest figure: --config.data.validation=0.1
--config.eval.select=best-validation.
The table's betas are not published; 1e-4 with n = 8 every 5 batches is the reference's default.
AugCKA-SR, with the biased CKA, is configs/paper/table5_augcka_cifar100.py.
Cost: 1.8e15 FLOPs, as for cifar10_resnet20_rst.py, whose recipe this is.
"""

from configs.paper.cifar10_resnet20_rst import get_config as cifar10


def get_config():
    """The config."""
    config = cifar10()
    config.data.name = "cifar100"
    config.data.validation = 0.0
    config.data.mean = (0.50708, 0.48655, 0.44092)
    config.data.std = (0.26733, 0.25644, 0.27615)
    config.data.pad_mode = "zero"
    config.eval.select = "best-test"
    return config
