"""Fashion-MNIST: tokens dropped from a vision transformer that CKA-SR has trained, as in the paper.

In the paper on DeiT-Tiny and ImageNet (its table 1): train with CKA-SR first, then a DynamicViT from
these weights. Here after fashion_mnist_vit.py:

  python launch.py --config=configs/studies/fashion_mnist_vit_pretrained.py --grid \\
    --config.data.dir=TFDS_FOLDER
  ... --config.model.start="runs/fashion_mnist_vit/beta=0.0,seed={seed}" \\
    --workdir=runs/fashion_mnist_vit_pretrained_without
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_vit_pretrained \\
    runs/fashion_mnist_vit_pretrained_without --field=model.start \\
    --baseline="runs/fashion_mnist_vit/beta=0.0,seed={seed}" --each \\
    --rows=model.options.keep_rates,model.options.keep_by

Expected: test accuracy 0.842 with dropped tokens and 0.858 with all, from either weights, and 1.7 points
lower with "score-cka" (docs/results/tokens.md).
Cost: 20 runs of 500 steps, about 20 seconds each on two CPU cores, and as many from weights without.

Half as many steps as the first training, at its learning rate, as the token scores start random;
keep rates () are the control, which trains on with all tokens. No penalty. A tenth of this rate was
tried first, and left test accuracy at 0.73 to 0.82; nothing else was tuned.
"""

from configs.studies.fashion_mnist_vit_tokens import get_config as tokens


def get_config():
    """The config."""
    config = tokens()
    config.model.start = "runs/fashion_mnist_vit/beta=0.001,seed={seed}"
    config.train.steps = 500
    config.grid.model.options.keep_rates = ((), (0.7, 0.49))
    return config
