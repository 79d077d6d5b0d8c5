"""ResNet-32 on CIFAR-100 at 95 % random static sparsity with CKA-SR.

  python launch.py --config=configs/paper/cifar100_resnet32_rst.py --config.data.dir=TFDS_FOLDER

Expected: no figure known. The paper has ResNet-32 figures in its main text, which we have not read.
Cost: not measured. The recipe is that of table 5, see cifar100_resnet20_rst.py.
"""

from configs.paper.cifar100_resnet20_rst import get_config as resnet20


def get_config():
    """The config."""
    config = resnet20()
    config.model.name = "resnet32"
    return config
