"""ResNet-20 on CIFAR-10, lottery tickets down to density 0.055 (Frankle et al.), with CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_lottery.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this recipe.
Cost: 14 trainings of 160 epochs each, 25e15 FLOPs as if dense. Not timed.

Recipe of open_lth: 13 rounds, each of which prunes 20 % of the remaining weights, all layers ranked
together. A round is 160 epochs, learning rate 0.1 divided by 10 at epochs 80 and 120, weight decay
1e-4. It starts from step 1000, 2 % of the run (the share is from memory). open_lth draws
BatchNorm's scale uniformly at random; this does not.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.optimizer.weight_decay = 1e-4
    config.eval.select = "last"
    config.sparsity.rule = "dense"
    config.lottery.rounds = 13
    config.lottery.rewind = 1000 / 56_160  # step 1000
    return config
