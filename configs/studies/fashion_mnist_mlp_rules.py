"""Fashion-MNIST, an MLP of six hidden layers under ten methods at four densities.

Not in the paper: the comparison of methods in docs/results/rules.md, without the penalty.

  python launch.py --config=configs/studies/fashion_mnist_mlp_rules.py --grid --config.data.dir=TFDS_FOLDER

Expected: the tables of docs/results/rules.md.
Cost: 120 runs of 10,000 steps, 1 to 2 minutes each on two CPU cores.

The dense network, into the same folder, and variants of four methods, each with a --workdir of its
own:

  ... --config.grid.sparsity.rule="('dense',)" --config.grid.sparsity.density="(1.0,)"
  ... --config.grid.sparsity.rule="('granet',)" --config.sparsity.initial_density=1.0 --workdir=...
  ... --config.grid.sparsity.rule="('mest',)" --config.sparsity.soft=True --workdir=...
  ... --config.grid.sparsity.rule="('snip', 'grasp')" --config.grid.sparsity.density="(0.05,)" \\
    --config.sparsity.shuffle=True --workdir=...

MEST without its options drops by magnitude and grows at random, which is SET.
"""

from ml_collections import ConfigDict

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "fashion_mnist"
    config.model.name = "mlp"
    config.model.options.hidden = (256,) * 6
    config.train.steps = 10_000
    config.train.batch_size = 128
    config.train.log_every = 500
    config.eval.every = 2000
    config.checkpoint.every = 5000
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.sparsity.rescale = True
    config.penalty.beta = 0.0
    config.seeds = (0, 1, 2)
    config.grid.sparsity = ConfigDict()
    config.grid.sparsity.rule = (
        "rst", "set", "rigl", "snfs", "mest", "granet", "gmp", "snip", "grasp", "synflow",
    )  # fmt: skip
    config.grid.sparsity.density = (0.05, 0.02, 0.01, 0.005)
    return config
