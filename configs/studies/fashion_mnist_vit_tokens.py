"""Fashion-MNIST, a small DynamicViT: fewer tokens, ranked by their score or with CKA, and CKA-SR.

In the paper on DeiT-Tiny and ImageNet (its table 1); here on a network that a CPU can train.

  python launch.py --config=configs/studies/fashion_mnist_vit_tokens.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_vit_tokens \\
    --field=model.options.keep_by --baseline=score --rows=model.options.keep_rates

With CKA-SR, and without dropping, each into a --workdir of its own:

  ... --config.grid.penalty.beta="(1e-3,)" --config.grid.model.options.keep_by="('score',)"
  ... --config.grid.penalty.beta="(0.0, 1e-3)" --config.grid.model.options.keep_rates="((),)" \\
    --config.grid.model.options.keep_by="('score',)"

Expected: test accuracy 0.841 at the higher keep rates and 0.835 at the lower ones, and with
"score-cka" 0.6 and 1.8 points lower (docs/results/tokens.md).
Cost: 20, 10 and 10 runs of 1,000 steps, about half a minute each on two CPU cores.

vit-micro with 16 patches of 7x7. A share of 0.7 and 0.49, or of 0.5 and 0.25, of them is left after
the blocks 1 and 2. Scores and network are trained together; "score" and "score-cka" differ in the
ranking at inference alone, so their weights are the same.
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
    config.grid.model = ConfigDict(
        {"options": {"keep_rates": ((0.7, 0.49), (0.5, 0.25)), "keep_by": ("score", "score-cka")}}
    )
    config.grid.penalty = ConfigDict({"beta": (0.0,)})
    return config
