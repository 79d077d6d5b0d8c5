"""A small vision transformer on CIFAR-10, random static masks at 80 % sparsity, and CKA-SR.

Not in the paper, which prunes ViTs by tokens (its appendix); here their kernels are pruned.

  python launch.py --config=configs/methods/cifar10_vit_rst.py --config.data.dir=TFDS_FOLDER

Expected: no figure known.
Cost: an epoch takes some 10 minutes on two CPU cores; train it on an accelerator.

The recipe is DeiT's without its heavy augmentation and distillation: AdamW, warm-up and cosine.
Features are each block's tokens, all in one stage, so the penalty compares all six blocks.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.data.pad = 4
    config.model.name = "vit-small32"
    config.model.options.patch = 4
    config.train.epochs = 100.0
    config.train.batch_size = 128
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.05
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.2
    config.sparsity.exclude = ("patches/kernel", "head/kernel")
    config.penalty.beta = 1e-4
    return config
