"""The paper's table 4: dense pre-training with CKA-SR; ResNet-18 on CIFAR-100.

  python launch.py --config=configs/paper/table4_dense_cifar100.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table4_dense_cifar100 --rows=sparsity.density

Expected: the paper reports 75.61 without the penalty and 76.32 with it, one run each.
Cost: 12 runs, 287e15 FLOPs. Not timed.

The paper gives neither recipe nor beta for this table. This is the recipe of its sparse runs, with
three betas to choose from on validation data, a tenth of the training images. The reference's
CIFAR-100 code trains on all images and chooses on the test set: for that,
--config.data.validation=0.0 --config.eval.select=best-test, with a --workdir of its own.
The table's ResNet-50 row, 77.39 without the penalty and 78.94 with it, is this with
--config.model.name=resnet50 and a --workdir of its own. Its ImageNet rows have no config here.
"""

from ml_collections import ConfigDict

from configs.paper.cifar100_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.data.validation = 0.1
    config.eval.select = "best-validation"
    config.model.name = "resnet18"
    config.model.options.width = 64
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.seeds = (0, 1, 2)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-5, 1e-4, 1e-3)})
    return config
