"""Fashion-MNIST: a trained MLP pruned once by magnitude or top-down attention, and retrained.

Not in the paper on CKA-SR: attentive pruning, Biparva and Tsotsos 2020 (arXiv 2005.04559), as it is
inferred in cka_sr_jax/sparsity/attentive.py.

  python launch.py --config=configs/studies/fashion_mnist_mlp_attentive.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_mlp_attentive --field=lottery.score \\
    --baseline=layer-magnitude --each --rows=lottery.prune

Expected: test accuracy 0.884 at density 0.2 for "attentive" and "layer-magnitude", 0.853 and 0.857 at
0.05; "magnitude" is behind both (docs/results/attentive.md).
Cost: 30 experiments of two trainings, about 15 seconds each on two CPU cores.

"magnitude" ranks all weights together; "layer-magnitude" and "attentive" those of each layer, since
attention's traces do not compare across layers.
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_mlp_rules import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.train.steps = 2000
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.sparsity.rescale = False
    config.penalty.beta = 0.0
    config.lottery.rounds = 1
    config.lottery.rewind = 0.0
    config.seeds = (0, 1, 2, 3, 4)
    config.grid = ConfigDict(
        {"lottery": {"score": ("magnitude", "layer-magnitude", "attentive"), "prune": (0.8, 0.95)}}
    )
    return config
