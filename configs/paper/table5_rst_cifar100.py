"""The paper's table 5: RST, ResNet-20, CIFAR-100 at six sparsities, without and with CKA-SR.

  python launch.py --config=configs/paper/table5_rst_cifar100.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table5_rst_cifar100 --value=1e-4

Expected: the paper's figures are in configs/paper/cifar100_resnet20_rst.py. They are the best test
accuracies of networks trained on all images. This grid holds a tenth of the images out and chooses
its weights on those, so expect lower figures.
Cost: 36 runs, 63e15 FLOPs. About 4 minutes a run on an H200, 6 to 13
hours on two CPU cores.

For the paper's own selection, with a --workdir of its own: --config.data.validation=0.0
--config.eval.select=best-test. The table's betas are not published: 1e-4 is the reference's
default. AugCKA-SR is configs/paper/table5_augcka_cifar100.py.
"""

from ml_collections import ConfigDict

from configs.paper.cifar100_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.data.validation = 0.1
    config.eval.select = "best-validation"
    config.seeds = (0, 1, 2)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-4)})
    config.grid.sparsity = ConfigDict({"density": (0.30, 0.15, 0.10, 0.05, 0.02, 0.002)})
    return config
