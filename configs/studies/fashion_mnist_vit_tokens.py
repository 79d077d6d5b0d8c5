"""Fashion-MNIST, a small DynamicViT: fewer tokens, ranked by their score or with CKA, and CKA-SR.

In the paper on DeiT-Tiny and ImageNet (its table 1); here on a network that a CPU can train.

  python launch.py --config=configs/studies/fashion_mnist_vit_tokens.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_vit_tokens \\
    --field=model.options.keep_by --baseline=score --rows=model.options.keep_rates

With CKA-SR too, into a --workdir of its own:

  ... --config.grid.penalty.beta="(1e-3,)"

Without dropping: fashion_mnist_vit.py.

Expected: test accuracy 0.841 at the higher keep rates and 0.835 at the lower ones, and with
"score-cka" 0.6 and 1.8 points lower (docs/results/tokens.md).
Cost: 20 runs, and 20 with CKA-SR, of 1,000 steps, about half a minute each on two CPU cores.

vit-micro with 16 patches of 7x7. A share of 0.7 and 0.49, or of 0.5 and 0.25, of them is left after
the blocks 1 and 2. Scores and network are trained together; "score" and "score-cka" differ in the
ranking at inference alone, so their weights are the same.
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_vit import get_config as whole


def get_config():
    """The config."""
    config = whole()
    config.grid.model = ConfigDict(
        {"options": {"keep_rates": ((0.7, 0.49), (0.5, 0.25)), "keep_by": ("score", "score-cka")}}
    )
    config.grid.penalty.beta = (0.0,)
    return config
