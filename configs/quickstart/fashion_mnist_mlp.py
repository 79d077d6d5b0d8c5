"""Fashion-MNIST, a 95 %-sparse MLP of six hidden layers with CKA-SR, on a CPU.

No table of the paper: a small real data set on which rules can be compared in seconds.

  python launch.py --config=configs/quickstart/fashion_mnist_mlp.py --config.data.dir=TFDS_FOLDER
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.name = "mlp"
    config.model.options.hidden = (256,) * 6
    config.train.epochs = 10.0
    config.train.batch_size = 128
    config.train.log_every = 100
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05
    config.sparsity.rescale = True  # without BatchNorm the signal fades else
    config.penalty.beta = 1e-4
    return config
