"""A small DynamicViT on CIFAR-10, whose tokens are ranked with CKA.

The CKA-SR paper's appendix prunes the tokens of DeiT-Tiny on ImageNet; see
configs/paper/imagenet_deit_tiny_tokens.py.

  python launch.py --config=configs/methods/cifar10_vit_tokens.py --config.data.dir=TFDS_FOLDER

Expected: no figure known.
Cost: not recorded; train it on an accelerator.

The recipe is that of cifar10_vit_rst.py, without masks on the weights. After the blocks 2 and 4 a
share of 0.7 and 0.49 of the 64 patches is left. The keep scores are learned with the task, and
CKA-SR compares the blocks' tokens.
"""

from configs.methods import cifar10_vit_rst


def get_config():
    """The config."""
    config = cifar10_vit_rst.get_config()
    config.model.options.keep_rates = (0.7, 0.49)
    config.model.options.keep_by = "score-cka"
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.sparsity.exclude = ()
    return config
