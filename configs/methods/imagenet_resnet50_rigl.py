"""ResNet-50 on ImageNet with RigL (Evci et al. 2020) at 80 % sparsity, ERK.

  python launch.py --config=configs/methods/imagenet_resnet50_rigl.py --config.data.dir=TFDS_FOLDER \\
    --config.data.workers=16

Expected: RigL's authors report 75.12 for ERK at 80 % in as many steps as dense training, and 73.07 at
90 %; the dense network has 76.8. We have not run this config.
Cost: 31e17 FLOPs as if dense, on 128 million images. Not timed.

Recipe of RigL on ImageNet: an update of the masks every 100 of 32,000 steps at batch 4096 until three
quarters of the run, drop fraction 0.3 on a cosine; learning rate 1.6, a tenth of it from 30, 70 and
90 % of the run on. Here, at batch 768, masks change every 533 steps, after as many images, and the
learning rate is 0.3. All else is as in configs/paper/imagenet_resnet18_rst.py, but for the penalty,
which --config.penalty.beta=1e-5 switches on.
"""

from configs.paper.imagenet_resnet18_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.model.name = "resnet50"
    config.optimizer.learning_rate = 0.3
    config.optimizer.schedule = "step"
    config.optimizer.decay_at = (0.3, 0.7, 0.9)
    config.sparsity.rule = "rigl"
    config.sparsity.density = 0.2
    config.sparsity.distribution = "erk"
    config.sparsity.update_every = 533
    config.sparsity.drop_fraction = 0.3
    config.sparsity.end = 0.75
    config.penalty.beta = 0.0
    return config
