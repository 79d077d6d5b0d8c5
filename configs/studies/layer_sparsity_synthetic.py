"""Regression on a random ReLU network of few layers, by a network of eight hidden layers.

Not in the paper on CKA-SR: layer sparsity, see docs/layer_sparsity.md.

  python launch.py --config=configs/studies/layer_sparsity_synthetic.py --config.seed=0 \\
    --config.layer_sparsity.teacher.active=2

Expected: a depth of 2 to 5 and, after the refit, a squared error below that of a network of the
teacher's depth. docs/layer_sparsity.md has the table over five seeds.
Cost: not recorded.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "relu_teacher"
    config.model.name = "mlp"
    config.model.options.hidden = (32,) * 8
    config.train.epochs = 40.0
    config.train.batch_size = 128
    config.eval.batch_size = 2000
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "dense"
    config.penalty.beta = 0.0
    config.layer_sparsity.strengths = (5.0, 5.5, 6.0, 7.0)
    return config
