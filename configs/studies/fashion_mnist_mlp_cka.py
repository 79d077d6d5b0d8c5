"""Fashion-MNIST, a deep sparse MLP: does CKA-SR help, and at which density?

Not in the paper: its claim, tried on a network that a CPU can train many times over.

  python launch.py --config=configs/studies/fashion_mnist_mlp_cka.py --grid --config.data.dir=TFDS_FOLDER
  python -m cka_sr_jax.analysis.paired runs/fashion_mnist_mlp_cka \\
    --rows=sparsity.rule,sparsity.density

Expected: no gain that these runs can show. The differences at the chosen beta lie between -0.37 and
+0.05 points, and every interval contains 0 (docs/results/mlp.md).
Cost: 180 runs of 5,000 steps, about 45 seconds each on two CPU cores.

The beta is chosen on validation data among three. docs/results/ also has the following, each with
a --workdir of its own.

Dense training, where beta may change the share of small weights, by AdamW (with 8 seeds) and SGD:

  ... --config.grid.sparsity.rule="('dense',)" --config.grid.sparsity.density="(1.0,)" \\
    --config.seeds="(0,1,2,3,4,5,6,7)"
  ... --config.grid.sparsity.rule="('dense',)" --config.grid.sparsity.density="(1.0,)" \\
    --config.grid.penalty.beta="(0.0, 1e-3, 1e-2)" \\
    --config.optimizer.name=sgd --config.optimizer.learning_rate=0.05

Other methods at one density (10 seeds; gmp has 30; snip, grasp and synflow have 3):

  ... --config.grid.sparsity.rule="('set','snfs','gmp')" --config.grid.sparsity.density="(0.01,)" \\
    --config.grid.penalty.beta="(0.0, 1e-3)" --config.seeds="(0,1,2,3,4,5,6,7,8,9)"

Dense training, pruned by magnitude at step 2,500, then trained on (without 1e-2 at density 0.01):

  ... --config.grid.sparsity.rule="('gmp',)" --config.grid.sparsity.density="(0.05, 0.01)" \\
    --config.sparsity.start=0.5 --config.sparsity.end=0.5 \\
    --config.grid.penalty.beta="(0.0, 1e-3, 1e-2)"

Few images, 1,800 to train on:

  ... --config.data.validation=0.97 --config.grid.penalty.beta="(0.0, 1e-3, 1e-2)" \\
    --config.grid.sparsity.rule="('dense',)" --config.grid.sparsity.density="(1.0,)"

How much of the features' variance a few samples hold, with rst at 0.05 and dense, and with the RBF
kernel (--config.penalty.kernel=rbf, 5 seeds):

  ... --config.grid.sparsity.rule="('rst',)" --config.grid.sparsity.density="(0.05,)" \\
    --config.grid.penalty.beta="(0.0, 1e-3, 1e-2)" --config.seeds="(0,1,2)"
"""

from ml_collections import ConfigDict

from configs.studies.fashion_mnist_mlp_rules import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.train.steps = 5000
    config.penalty.samples = 8
    config.seeds = (0, 1, 2, 3, 4)
    config.grid.sparsity.rule = ("rst", "rigl", "granet")
    config.grid.sparsity.density = (0.05, 0.01, 0.005)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-4, 1e-3, 1e-2)})
    return config
