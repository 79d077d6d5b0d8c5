"""The paper's figures of ResNet-20 at four betas: CKA heat maps and weight histograms.

  python launch.py --config=configs/paper/figure_beta_cifar10.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.figures heatmaps runs/figure_beta_cifar10 heatmaps.png
  python -m cka_sr_jax.analysis.figures histograms runs/figure_beta_cifar10 histograms.png
  python -m cka_sr_jax.analysis.figures curves runs/figure_beta_cifar10 curves.png
  python -m cka_sr_jax.analysis.table runs/figure_beta_cifar10 --rows=penalty.beta \\
    --value=epsilon_sparsity.0.001

Expected: in the paper similarity falls as beta grows, between stages too, and more weights lie
near 0. It gives no numbers.
Cost: 4 runs, 7e15 FLOPs. 4 minutes a run on an H200, 6 to 13 hours on two CPU cores.

RST on CIFAR-10 at 95 % sparsity, betas 0, 0.01, 0.05 and 0.08, one seed, the weights of the last
step. The figures' n is not published: this takes n = 8 every 5 batches. The recipe is that of
configs/paper/cifar10_resnet20_rst.py.

Two variants, each with a --workdir of its own. The paper's ResNet-56 figure:
--config.model.name=resnet56 --config.grid.penalty.beta="(0.0, 5e-4, 2e-3, 5e-3)". Whether dense
training gets more small weights, as theorem 1 says: --config.sparsity.rule=dense.
epsilon_sparsity counts pruned weights too; kept_below.0.001 is the share of the kept ones.
"""

from ml_collections import ConfigDict

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.eval.select = "last"
    config.grid.penalty = ConfigDict({"beta": (0.0, 0.01, 0.05, 0.08)})
    return config
