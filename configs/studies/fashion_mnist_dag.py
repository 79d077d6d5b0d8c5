"""Fashion-MNIST at 14x14: stages whose graph is learned, against the residual and a random graph.

Not in the paper on CKA-SR: learned topology, Yuan et al. 2020 (arXiv 2008.08261). The network and
the comparison of digits_dag.py on a larger test set.

  python launch.py --config=configs/studies/fashion_mnist_dag.py --grid \\
    --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_dag --field=model.options.graph \\
    --baseline=residual --each --rows=model.name

Expected: test accuracy 0.892 for the residual graph and for learned edges, 0.896 for random ones
(docs/results/topology.md).
Cost: 15 runs of 1,500 steps, about a minute each on two CPU cores.

With an adaptive penalty on the edges, into a --workdir of its own:

  ... --config.grid.model.options.graph="('learned',)" --config.model.options.adaptive=True \\
    --config.grid.model.options.edge_penalty="(1e-2,)"
"""

from configs.studies.digits_dag import get_config as digits


def get_config():
    """The config."""
    config = digits()
    config.data.name = "fashion_mnist"
    config.data.downsample = 2
    config.data.validation = 0.1
    config.train.steps = 1500
    config.train.batch_size = 128
    return config
