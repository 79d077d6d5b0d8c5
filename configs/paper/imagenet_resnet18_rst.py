"""ResNet-18 on ImageNet at 95 % random static sparsity with CKA-SR: the paper's ImageNet recipe.

  python launch.py --config=configs/paper/imagenet_resnet18_rst.py --config.data.dir=TFDS_FOLDER \\
    --config.data.workers=16

Expected: no figure known for this run; the paper's table 4 has this network dense, 69.62 without the
penalty and 69.90 with it. We have not run this config.
Cost: 14e17 FLOPs as if dense, on 128 million images. Not timed.

Recipe: 100 epochs of SGD with Nesterov momentum 0.9, batch 768 (192 on each of four GPUs), weight
decay 1e-4, label smoothing 0.1; learning rate 0.4, with a warm-up of 5 epochs and a cosine. ERK masks,
the head dense (erk_plus). Random-resized crops of 224 pixels, and flips; central crops for evaluation.
The penalty has beta 1e-5 and compares all of a device's samples in every batch.

The ImageNet set is streamed: docs/running.md says how to prepare it. It is tested on its validation
split, with the weights of the last step.
The reference differs in three ways. It computes in float16 with a loss scale of 256, and this in
bfloat16. Its masks are drawn at random (--config.sparsity.exact=False). It also trains on the last,
smaller batch of an epoch. How its learning rate falls after the warm-up is not known; the cosine is
the usual recipe's.
"""

from cka_sr_jax.training import default_config


def get_config():
    """The config."""
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.stream = True
    config.data.crop = 224
    config.data.validation = 0.0
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.flip = True
    config.model.options.stem = "imagenet"
    config.model.name = "resnet18"
    config.model.dtype = "bfloat16"
    config.train.epochs = 100.0
    config.train.batch_size = 768
    config.train.label_smoothing = 0.1
    config.eval.select = "last"
    config.optimizer.learning_rate = 0.4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.05
    config.sparsity.rule = "rst"
    config.sparsity.density = 0.05
    config.sparsity.distribution = "erk_plus"
    config.penalty.beta = 1e-5
    config.penalty.samples = -1
    config.penalty.every = 1
    return config
