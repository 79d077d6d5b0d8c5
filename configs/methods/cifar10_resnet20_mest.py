"""ResNet-20 on CIFAR-10 with MEST (Yuan et al. 2021) at 95 % sparsity and CKA-SR.

  python launch.py --config=configs/methods/cifar10_resnet20_mest.py --config.data.dir=TFDS_FOLDER

Expected: no figure known for this network.
Cost: not timed.

Recipe of the authors: batch 64; cosine learning rate from 0.1 after a warm-up of 8 of 160 epochs;
masks change every 5 epochs (3515 steps) up to epoch 120. EM&S, the soft memory bound:
--config.sparsity.soft=True.
CKA-SR is on as for table 2 (configs/paper/cifar10_resnet20_rst.py);
--config.penalty.beta=0 switches it off.
"""

from configs.paper.cifar10_resnet20_rst import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.train.batch_size = 64
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.05  # 8 of 160 epochs
    config.sparsity.rule = "mest"
    config.sparsity.update_every = 3515
    config.sparsity.end = 0.75
    return config
