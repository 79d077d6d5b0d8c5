"""ResNet-20 on CIFAR-10 with RigL at 98 % sparsity: does CKA-SR help a dynamic rule?

Not in the paper, which has RST alone on this network. The betas are two of its table 2, with n = 8
every 5 batches.

  python launch.py --config=configs/studies/cifar10_resnet20_rigl_cka.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/cifar10_resnet20_rigl_cka

Expected: no figure known. After two epochs one run at beta 8e-4 had 0.56.
Cost: 9 runs of 160 epochs, 16e15 FLOPs as if dense. 6 to 13 hours a run on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.methods.cifar10_resnet20_rigl import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.sparsity.density = 0.02
    config.seeds = (0, 1, 2)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-4, 8e-4)})
    return config
