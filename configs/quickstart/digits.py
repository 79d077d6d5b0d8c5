"""Scikit-learn's digits, a 95 %-sparse MLP with CKA-SR: the default run.

Not in the paper: 8x8 images that come with the installation, to see everything work.

  python launch.py --config=configs/quickstart/digits.py

Expected: a test accuracy of 0.94 to 0.98, and a mean within-stage CKA near 0.74; without the
penalty, --config.penalty.beta=0, the CKA is near 0.91.
Cost: a minute on two CPU cores.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "digits"
    config.model.name = "mlp"
    config.model.options.hidden = (512, 512, 512)
    config.train.epochs = 60.0
    config.train.batch_size = 64
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05
    config.penalty.beta = 1e-2
    return config
