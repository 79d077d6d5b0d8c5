"""Fashion-MNIST, a 95 %-sparse LeNet-5 with CKA-SR, on a CPU.

Not in the paper: the smallest convolutional run.

  python launch.py --config=configs/quickstart/fashion_mnist_lenet.py --config.data.dir=TFDS_FOLDER

Expected: no figure stored for this recipe. With AdamW, rescaled weights and 3 epochs
(configs/studies/fashion_mnist_lenet_cka.py) density 0.05 has 0.76.
Cost: 1 to 2 minutes on two CPU cores.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.name = "lenet5"
    config.train.epochs = 5.0
    config.train.batch_size = 128
    config.train.log_every = 100
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05
    config.penalty.beta = 1e-4
    return config
