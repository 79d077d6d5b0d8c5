"""Fashion-MNIST, a small vision transformer with and without CKA-SR.

Not in the paper, which trains DeiT-Tiny on ImageNet: the same comparison on a network that a CPU can
train, and the weights from which fashion_mnist_vit_pretrained.py starts.

  python launch.py --config=configs/studies/fashion_mnist_vit.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_vit

Expected: test accuracy 0.849 with and without (docs/results/tokens.md).
Cost: 10 runs of 1,000 steps, about half a minute each on two CPU cores.

vit-micro with 16 patches of 7x7, dense.
"""

from ml_collections import ConfigDict

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.name = "vit-micro"
    config.model.options.patch = 7
    config.train.steps = 1000
    config.train.batch_size = 128
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.1
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.penalty.samples = 8
    config.seeds = (0, 1, 2, 3, 4)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-3)})
    return config
