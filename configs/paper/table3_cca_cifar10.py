"""The paper's table 3: a CCA penalty in place of CKA-SR; RST, ResNet-20, CIFAR-10, 95 % sparsity.

  python launch.py --config=configs/paper/table3_cca_cifar10.py --grid --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/table3_cca_cifar10 --rows=penalty.similarity

Paper, one run each: 84.16 without a penalty, 84.58 with CCA, 85.03 with CKA-SR (table 2). How the
paper computes CCA is not published; this is `cka_sr_jax.similarity.cca`, with a ridge and debiased, on all
samples of every batch, as its figure for CKA-SR. 36 runs; the 3 of CCA at beta 0 train what 3 of
the others do. Each penalty's beta is chosen on validation data. What else differs from the
reference is in configs/paper/cifar10_resnet20_rst.py.
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
