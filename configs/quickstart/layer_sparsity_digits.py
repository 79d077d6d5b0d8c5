"""Scikit-learn's digits: eight hidden layers trained away, merged and refitted.

python launch.py --config=configs/quickstart/layer_sparsity_digits.py
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
