"""ResNet-20 on CIFAR-10 at 95 % random static sparsity with CKA-SR: the paper's table 2.

  python launch.py --config=configs/paper/cifar10_resnet20_rst.py --config.data.dir=TFDS_FOLDER

Paper (one run each): 84.16 without the penalty (--config.penalty.beta=0). With n = 8 samples every
5 batches: 84.97 at beta 1e-4, this config, and 84.41 at beta 8e-4. With all samples in every batch
(--config.penalty.samples=-1 --config.penalty.every=1): 85.03 at beta 8e-4, the best of twelve betas.

The recipe: SGD with Nesterov momentum 0.9, learning rate 0.1 divided by 10 at half and at three
quarters of 160 epochs, weight decay 5e-4, batch 128, ERK; reflect-padded random crops and flips;
the last tenth of the training images is for validation, and the weights of the best validation
accuracy are tested. The reference draws each mask entry on its own (--config.sparsity.exact=False),
augments its validation images and counts every fifth batch anew in each epoch; this does not, and
leaves out each epoch's last batch where it is not full. The reference ran on one GPU: on several
devices each has BatchNorm statistics and n samples of its own, so show this one, such as with
CUDA_VISIBLE_DEVICES=0.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.validation = 0.1
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.data.flip = True
    config.data.pad = 4
    config.data.pad_mode = "reflect"
    config.model.name = "resnet20"
    config.model.options.width = 16
    config.train.epochs = 160.0
    config.train.batch_size = 128
    config.eval.select = "best-validation"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_at = (0.5, 0.75)
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05
    config.penalty.beta = 1e-4
    config.penalty.samples = 8
    config.penalty.every = 5
    return config
