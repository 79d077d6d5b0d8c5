"""Scikit-learn's digits: eight hidden layers trained away, merged and refitted.

Not in the paper on CKA-SR: layer sparsity, see docs/layer_sparsity.md.

  python launch.py --config=configs/quickstart/layer_sparsity_digits.py

Expected: 9 layers become 2. Test error 0.025 without the layer penalty, 0.022 merged, 0.014 to
0.017 after the refit. Another machine may give a depth one or two layers off.
Cost: half a minute on two CPU cores.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "digits"
    config.data.validation = 0.2
    config.model.name = "mlp"
    config.model.options.hidden = (64,) * 8
    config.train.epochs = 60.0
    config.train.batch_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "dense"
    config.penalty.beta = 0.0
    config.layer_sparsity.strengths = (5.0, 10.0, 15.0, 20.0)
    return config
