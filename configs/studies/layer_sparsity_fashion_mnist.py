"""Fashion-MNIST: an MLP of eight hidden layers of 128 units, alone, with CKA-SR, with RigL.

Not in the paper on CKA-SR: layer sparsity, see docs/layer_sparsity.md.

  python launch.py --config=configs/studies/layer_sparsity_fashion_mnist.py --config.data.dir=TFDS_FOLDER
  ... --config.penalty.beta=1e-3
  ... --config.sparsity.rule=rigl --config.layer_sparsity.refit_keep_zeros=True

Expected: 2 to 5 layers in place of 9. The test error is 0.12, within half a point of the deep
network's; with RigL it is 0.15, below the deep network's. docs/layer_sparsity.md has the table over
seeds.
Cost: not recorded.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.name = "mlp"
    config.model.options.hidden = (128,) * 8
    config.train.epochs = 5.0
    config.train.batch_size = 128
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "dense"
    config.sparsity.density = 0.1  # with --config.sparsity.rule=rigl
    config.penalty.beta = 0.0
    config.layer_sparsity.strengths = (20.0, 25.0, 30.0)
    return config
