"""The paper's figures of ResNet-20 at four betas: CKA heat maps and weight histograms.

  python launch.py --config=configs/paper/figure_beta_cifar10.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.figures heatmaps runs/figure_beta_cifar10 heatmaps.png
  python -m cka_sr_jax.analysis.figures histograms runs/figure_beta_cifar10 histograms.png
  python -m cka_sr_jax.analysis.figures curves runs/figure_beta_cifar10 curves.png
  python -m cka_sr_jax.analysis.table runs/figure_beta_cifar10 --rows=penalty.beta \\
    --value=epsilon_sparsity.0.001

RST on CIFAR-10 at 95 % sparsity, betas 0, 0.01, 0.05 and 0.08, one seed, the weights of the last
step. The figure's n is not published: this is n = 8 every 5 batches. What else differs from the
reference is in configs/paper/cifar10_resnet20_rst.py. In the paper the similarity falls as
beta grows, across stages too, and more weights lie at 0. Its ResNet-56 figure, with another
--workdir: --config.model.name=resnet56 --config.grid.penalty.beta="(0.0, 5e-4, 2e-3, 5e-3)". Whether
dense training gets more small weights, which is theorem 1: --config.sparsity.rule=dense and again
another --workdir. epsilon_sparsity counts pruned weights too: of the kept ones the share is
(epsilon_sparsity - (1 - density)) / density.
"""

from ml_collections import ConfigDict

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.eval.select = "last"
    config.grid.penalty = ConfigDict({"beta": (0.0, 0.01, 0.05, 0.08)})
    return config
