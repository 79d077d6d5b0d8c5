"""Wide ResNet 22-2 on CIFAR-10 with RigL (Evci et al. 2020) at 80 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_wrn22_rigl.py --config.data.dir=TFDS_FOLDER

Expected: 93.1 without CKA-SR (--config.penalty.beta=0), by the reproducibility report of RigL, which
also has 92.6 with one density for all layers (--config.sparsity.distribution=uniform), and with ERK
92.9 for SET and 93.2 for gradual pruning. No figure is known with CKA-SR. We have not run this
config to its end.
Cost: 12e15 FLOPs as if dense. Not timed.

Recipe of the authors' code: 97,656 steps (250 epochs) of SGD with Nesterov momentum 0.9, batch 128,
weight decay 5e-4, all training images; learning rate 0.1, divided by 5 at steps 30,000, 60,000 and
90,000. Masks change every 100 steps until step 75,000, with drop fraction 0.3, here on a cosine as
in the paper. ERK keeps the first convolution dense, and the code does so too.
The code differs in three ways. It has dropout of 0.3 between a block's convolutions. It normalizes
each image by itself. Its drop fraction is constant by default (--config.sparsity.schedule=constant).
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py).
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe

STEPS = 97_656


def get_config():
    """The config."""
    config = recipe()
    config.data.validation = 0.0
    config.model.name = "wrn22-2"
    config.train.steps = STEPS
    config.eval.select = "last"
    config.optimizer.decay_at = (30_000 / STEPS, 60_000 / STEPS, 90_000 / STEPS)
    config.optimizer.decay_factor = 0.2
    config.sparsity.rule = "rigl"
    config.sparsity.density = 0.2
    config.sparsity.distribution = "erk"
    config.sparsity.update_every = 100
    config.sparsity.drop_fraction = 0.3
    config.sparsity.end = 75_000 / STEPS
    return config
