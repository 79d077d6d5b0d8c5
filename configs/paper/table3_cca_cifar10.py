"""The paper's table 3: a CCA penalty in place of CKA-SR; RST, ResNet-20, CIFAR-10, 95 % sparsity.

  python launch.py --config=configs/paper/table3_cca_cifar10.py --grid --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table3_cca_cifar10 --rows=penalty.similarity

Expected: the paper reports 84.16 without a penalty, 84.58 with CCA and 85.03 with CKA-SR (the best
of table 2), one run each.
Cost: 36 runs, 63e15 FLOPs. The 3 runs of CCA at beta 0 repeat the 3 of CKA at beta 0.

The paper does not say how it computes CCA. This is `cka_sr_jax.similarity.cca_penalty`, debiased
and with a ridge, on all samples of every batch, as in the paper's best CKA-SR run. The beta of each
penalty is chosen on validation data. The recipe is that of configs/paper/cifar10_resnet20_rst.py.
"""

from ml_collections import ConfigDict

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.penalty.samples = -1
    config.penalty.every = 1
    config.seeds = (0, 1, 2)
    betas = (0.0, 1e-5, 1e-4, 8e-4, 1e-3, 1e-2)
    config.grid.penalty = ConfigDict({"beta": betas, "similarity": ("cka", "cca")})
    return config
