"""DeiT-Tiny on ImageNet with fewer tokens, ranked with CKA: the paper's table 1 (appendix).

  python launch.py --config=configs/paper/imagenet_deit_tiny_tokens.py --config.data.dir=TFDS_FOLDER \\
    --config.data.workers=16
  ... --config.model.options.keep_rates="(0.9, 0.81, 0.729)"
  ... --config.model.options.keep_rates="()"

In the paper's order, first with CKA-SR and all tokens, then with fewer from these weights:

  ... --config.model.options.keep_rates="()" --workdir=runs/deit_tiny_cka
  ... --config.model.start=runs/deit_tiny_cka --config.train.epochs=30 --config.penalty.beta=0 \\
    --config.optimizer.learning_rate=1e-4 --workdir=runs/deit_tiny_cka_tokens

Expected: the paper has, at keep rate 0.7, 71.11 for DynamicViT and 71.35 with CKA-SR and its ranking;
at 0.9, 72.31 and 72.52; dense, 72.20. We have not run this config, and its recipe is not the paper's.
Cost: 2.6 GFLOPs (1.3 10^9 multiply-adds) for an image without dropping, 1.7 at 0.7. Not timed.

The paper pre-trains DeiT-Tiny with CKA-SR, and then trains DynamicViT from it; it gives no recipe.
The first three commands train all together, from random weights, by DeiT's schedule of 300 epochs
without its augmentation, and without DynamicViT's distillation from the network that keeps all
tokens. DynamicViT trains for 30 epochs (from memory); the learning rate there is our guess. beta is
the ImageNet recipe's. CKA's samples for the ranking are the channels of each token.
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
    config.model.name = "vit-tiny"
    config.model.dtype = "bfloat16"
    config.model.options.keep_rates = (0.7, 0.49, 0.343)
    config.model.options.keep_by = "score-cka"
    config.train.epochs = 300.0
    config.train.batch_size = 1024
    config.train.label_smoothing = 0.1
    config.eval.select = "last"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 5 / 300
    config.sparsity.rule = "dense"
    config.sparsity.density = 1.0
    config.penalty.beta = 1e-5
    config.penalty.samples = -1
    config.penalty.every = 1
    return config
