"""Fashion-MNIST: ReLU layers of an MLP removed one by one, by EASIER's entropy or by CKA.

Not in the paper on CKA-SR: see docs/layer_sparsity.md, "Rivals".

  python launch.py --config=configs/studies/layer_rivals_fashion_mnist.py --config.data.dir=TFDS_FOLDER
  ... --config.layer_sparsity.score=cka

Expected: test error 0.11 to 0.12 from nine layers down to four, 0.17 with two (docs/layer_sparsity.md).
Cost: some 2 minutes on two CPU cores.

The network and its training are those of layer_sparsity_fashion_mnist.py. Each removal is followed
by a refit as long as the first training.
"""

from configs.studies import layer_sparsity_fashion_mnist


def get_config():
    """The config."""
    config = layer_sparsity_fashion_mnist.get_config()
    config.layer_sparsity.strengths = ()
    config.layer_sparsity.score = "entropy"
    return config
