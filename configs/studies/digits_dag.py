"""Digits: stages whose graph is learned, against the residual and a random graph of equal cost.

Not in the paper on CKA-SR: learned topology, Yuan et al. 2020 (arXiv 2008.08261).

  python launch.py --config=configs/studies/digits_dag.py --grid
  python -m cka_sr_jax.analysis.paired runs/digits_dag --field=model.options.graph \\
    --baseline=residual --each --rows=model.name
  python -m cka_sr_jax.analysis.topology table runs/digits_dag

Expected: test accuracy 0.988 for the residual graph, 0.985 for learned edges and 0.986 for random ones;
no difference is clear of 0 (docs/results/topology.md).
Cost: 15 runs of 600 steps, about half a minute each on two CPU cores.

Three stages of four nodes with 8, 16 and 32 filters. The three graphs have the same nodes, so the
same parameters but for 45 edge weights; a random one has about half the edges, each fixed to 1.

With a penalty on the edges, uniform and adaptive, each into a --workdir of its own:

  ... --config.grid.model.options.graph="('learned',)" \\
    --config.grid.model.options.edge_penalty="(1e-3, 1e-2)"
  ... --config.grid.model.options.graph="('learned',)" --config.model.options.adaptive=True \\
    --config.grid.model.options.edge_penalty="(1e-3, 1e-2)"
"""

from ml_collections import ConfigDict

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "digits"
    config.data.validation = 0.2
    config.model.name = "dag4"
    config.model.options.width = 8
    config.model.options.adaptive = False
    config.train.steps = 600
    config.train.batch_size = 64
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "cosine"
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.penalty.beta = 0.0
    config.seeds = (0, 1, 2, 3, 4)
    config.grid.model = ConfigDict(
        {"options": {"graph": ("residual", "random", "learned"), "edge_penalty": (0.0,)}}
    )
    return config
