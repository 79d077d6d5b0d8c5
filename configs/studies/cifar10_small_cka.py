"""CIFAR-10 at 16x16, a sparse ResNet-14 of width 8: CKA-SR with convolutions and BatchNorm.

Not in the paper: its recipe at a size that a CPU can train many times over.

  python launch.py --config=configs/studies/cifar10_small_cka.py --grid --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/cifar10_small_cka

Expected: no gain that these runs can show. Test accuracy 0.56 at density 0.05 and 0.36 at 0.01
without the penalty; beta 1e-2 at 0.01 loses a point.
Cost: 24 runs of 4,000 steps, 3 to 13 minutes each on two CPU cores.

The beta is chosen on validation data among three. Into the same folder go one more beta,
--config.grid.penalty.beta="(1e-1,)", and two more seeds of two betas at one density:
--config.seeds="(3, 4)" --config.grid.penalty.beta="(0.0, 1e-2)"
--config.grid.sparsity.density="(0.05,)". The dense network, with a --workdir of its own, has 0.72:
--config.grid.penalty.beta="(0.0, 1e-2)" --config.grid.sparsity.density="(1.0,)"
--config.sparsity.rule=dense.
"""

from ml_collections import ConfigDict

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.data.downsample = 2
    config.data.pad = 2
    config.model.name = "resnet14"
    config.model.options.width = 8
    config.train.steps = 4000
    config.train.log_every = 200
    config.eval.every = 1000
    config.eval.select = "last"
    config.checkpoint.every = 2000
    config.optimizer.schedule = "cosine"
    config.penalty.every = 1
    config.seeds = (0, 1, 2)
    config.grid.sparsity = ConfigDict({"density": (0.05, 0.01)})
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-4, 1e-3, 1e-2)})
    return config
