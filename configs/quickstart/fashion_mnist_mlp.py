"""Fashion-MNIST, a 95 %-sparse MLP of six hidden layers with CKA-SR, on a CPU.

Not in the paper: a small real data set on which methods can be compared quickly.

  python launch.py --config=configs/quickstart/fashion_mnist_mlp.py --config.data.dir=TFDS_FOLDER

Expected: no figure stored for this recipe. With AdamW and 5,000 steps
(configs/studies/fashion_mnist_mlp_cka.py) density 0.05 has 0.86.
Cost: about a minute on two CPU cores.
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
