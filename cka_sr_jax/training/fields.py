"""Every field of a config: its default, its meaning, and the values that it takes.

A new field is a new entry here. `default_config`, `validate`, the messages of `launch.py` and
docs/config.md all follow from it. One convention holds throughout: WHEN something happens is a
share of the run, from 0 to 1, and HOW OFTEN it happens is in steps. The share s stands for step
round(s * steps).

The file is long because it is one table, and one table is easier to search than several.
"""

from __future__ import annotations

from collections.abc import Iterable

from cka_sr_jax._errors import unknown
from cka_sr_jax.sparsity import DISTRIBUTIONS, SCORES
from cka_sr_jax.training.field import Field
from cka_sr_jax.training.methods import DEFAULT_METHOD, METHOD_NAMES
from cka_sr_jax.training.penalty import SIMILARITIES

RUN, WEIGHTS = "share of the run", "share of the weights"
SEEDS = "[0, 4294967295]"  # what fits in 32 bits

# The groups of the fields, as on the reference page.
GROUPS = {
    "": "Seeds and grids",
    "data": "Data",
    "model": "Model",
    "train": "Training",
    "eval": "Evaluation",
    "optimizer": "Optimizer and learning rate",
    "sparsity": "Sparse training",
    "penalty": "The penalty on similar features",
    "lottery": "Lottery tickets",
    "layer_sparsity": "Layer sparsity",
    "checkpoint": "Checkpoints",
    "report": "Watching a run",
}

# Groups whose fields are up to the config: those of the model's class, and the axes of a grid.
FREE_GROUPS = ("grid", "model.options")

FIELDS = {
    "seed": Field(
        0, "Seed of the weights, the masks, the order of the data and the augmentation.",
        within=SEEDS,
    ),
    "seeds": Field(
        (), "Seeds with which a grid runs each of its points.", items=int, within=SEEDS,
        example=(0, 1, 2),
    ),
    "grid": Field(
        {}, "Axes of a grid: fields with a tuple of values each, such as grid.penalty.beta=(0, 1).",
    ),
    # Data.
    "data.name": Field("digits", "Data set: digits, relu_teacher, or the name of a TFDS set."),
    "data.dir": Field(
        "", "Folder of the TFDS sets, prepared as array_record.", resumable=True,
    ),
    "data.cache_dir": Field(
        "", "Folder for decoded images; empty: the user's cache folder.", resumable=True
    ),
    "data.validation": Field(
        0.1, "Share of the training split that is held out for validation.",
        unit="share of the training split", within="[0, 1)",
    ),
    "data.downsample": Field(
        1, "Side of the squares of pixels that are averaged into one.", unit="pixels",
        within="[1, inf)",
    ),
    "data.mean": Field(
        (), "Mean of each channel, of images in [0, 1]; empty: that of the training images.",
        within="[0, 1]", example=(0.49, 0.48, 0.45), needs="data.std, of the same length",
    ),
    "data.std": Field(
        (), "Standard deviation of each channel, of images in [0, 1]; empty: measured as well.",
        within="[0.001, 1]", example=(0.2, 0.2, 0.2), needs="data.mean, of the same length",
    ),
    "data.flip": Field(False, "Whether to mirror training images left to right at random."),
    "data.pad": Field(
        0, "Pixels added on each side before a random crop to the old size.", unit="pixels",
        within="[0, inf)", example=4,
    ),
    "data.pad_mode": Field("reflect", "What the padding shows.", choices=("reflect", "zero")),
    "data.stream": Field(
        False, "Whether images stay on the disk and are decoded for each batch, for sets that do "
        "not fit in memory.", needs="data.crop, data.mean and data.std",
    ),
    "data.crop": Field(
        0, "Side of the crops of streamed images: random ones for training, resized from 8 to "
        "100 % of the image, and central ones for evaluation; 0: images are not streamed.",
        unit="pixels", within="[0, inf)", example=224, needs="data.stream",
    ),
    "data.workers": Field(
        0, "Processes that decode streamed images; 0: threads of the training process decode.",
        within="[0, inf)", example=8, resumable=True,
    ),
    # Model.
    "model.name": Field(
        "mlp", "Model: mlp, lenet5, resnetN (N = 6n + 2, or 18, 34, 50, 101, 152), vgg16, vgg19, "
        "wrnD-K (a wide ResNet, D = 6n + 4), vit-tiny, vit-small, vit-base, vit-small32, "
        "vit-micro, or dagN (N nodes a stage).",
    ),
    "model.dtype": Field(
        "float32", "Type that the model computes in; the weights stay float32.",
        choices=("float32", "bfloat16"),
    ),
    "model.options": Field(
        {}, "Fields of the model's class, such as hidden=(300, 100), width=16, stem=imagenet.",
    ),
    "model.start": Field(
        "", "Whose weights a run starts from: a finished run's folder, in which {seed} stands for "
        "this run's seed, or a .safetensors file of `cka-sr export`, torchvision or timm. A head "
        "for other classes starts random. Empty: all weights do.",
    ),
    # Training.
    "train.epochs": Field(10.0, "Length of the run.", unit="epochs", within="(0, inf)"),
    "train.steps": Field(
        0, "Length of the run in steps; 0: train.epochs says it.", unit="steps", within="[0, inf)",
        example=5000,
    ),
    "train.batch_size": Field(
        128, "Images in a batch, over all devices.", unit="images", within="[1, inf)",
        needs="to be a multiple of the number of devices",
    ),
    "train.accumulate": Field(
        1, "Parts of a device's batch that a step takes one after the other, to save memory; the "
        "gradients are averaged.", within="[1, inf)", example=4,
        needs="train.batch_size to be a multiple of the devices times this",
    ),
    "train.label_smoothing": Field(
        0.0, "Share of the target that all classes divide equally.", within="[0, 1)", example=0.1
    ),
    "train.parallel": Field(
        "pmap", "How a step is spread over several devices.", choices=("pmap", "shard_map")
    ),
    "train.not_finite": Field(
        "stop", "What to do where a step's loss, gradients or new weights are not finite: stop the "
        "run, or skip the step's update.", choices=("stop", "skip"),
    ),
    "train.log_every": Field(
        50, "Steps between two records of the loss.", unit="steps", within="[1, inf)",
        resumable=True,
    ),
    # Evaluation.
    "eval.every": Field(
        0, "Steps between evaluations; 0: once an epoch.", unit="steps", within="[0, inf)",
        example=1000,
    ),
    "eval.batch_size": Field(
        500, "Images in a batch of the evaluation.", unit="images", within="[1, inf)"
    ),
    "eval.select": Field(
        "last", "Which weights are reported: the last, or those of the best evaluation.",
        choices=("last", "best-validation", "best-test"),
        needs="data.validation above 0 for best-validation",
    ),
    # Optimizer and learning rate.
    "optimizer.name": Field("sgd", "Optimizer.", choices=("sgd", "adamw")),
    "optimizer.learning_rate": Field(0.1, "Highest learning rate.", within="[0, inf)"),
    "optimizer.momentum": Field(0.9, "Momentum of SGD.", within="[0, 1)"),
    "optimizer.nesterov": Field(True, "Whether SGD's momentum is Nesterov's."),
    "optimizer.weight_decay": Field(
        5e-4, "Weight decay, on every parameter: L2 with sgd, decoupled with adamw.",
        within="[0, inf)",
    ),
    "optimizer.schedule": Field(
        "step", "How the learning rate falls.", choices=("constant", "step", "cosine")
    ),
    "optimizer.decay_at": Field(
        (0.5, 0.75), "When the step schedule multiplies the learning rate by decay_factor.",
        unit=RUN, within="(0, 1)", increasing=True,
    ),
    "optimizer.decay_factor": Field(
        0.1, "Factor of the step schedule at each decay.", within="(0, 1]"
    ),
    "optimizer.warmup": Field(
        0.0, "Length of the linear warm-up from 0 at the start.", unit=RUN, within="[0, 1)",
        example=0.05,
    ),
    # Sparse training. Where the default is None, the method has its own.
    "sparsity.rule": Field(DEFAULT_METHOD, "Method of sparse training.", choices=METHOD_NAMES),
    "sparsity.density": Field(
        0.05, "Share of the weights that is kept; methods that learn their density ignore it.",
        unit=WEIGHTS, within="(0, 1]",
    ),
    "sparsity.include": Field(
        (), "Path patterns of the parameters that are pruned; empty: every kernel.", items=str,
        example=("stage2*",),
    ),
    "sparsity.exclude": Field(
        (), "Path patterns of parameters that stay dense.", items=str, example=("head/kernel",)
    ),
    "sparsity.rescale": Field(
        False, "Whether to scale the kept initial weights to the norm of all, for deep networks "
        "without normalization.", needs="a method whose masks are there from the start",
    ),
    "sparsity.new_weights": Field(
        "full", "First updates of weights that a rule grows: full, or with Adam's bias corrected "
        "by their own age.", choices=("full", "adam"),
        needs="a rule that grows weights, and optimizer.name=adamw, for adam",
    ),
    "sparsity.end": Field(
        0.75, "When the masks change for the last time.", unit=RUN, within="(0, 1]"
    ),
    "sparsity.distribution": Field(
        None, "How the layers share the density.", kind=str, choices=(*DISTRIBUTIONS, "global")
    ),
    "sparsity.exact": Field(
        None, "Whether each layer keeps an exact count, instead of a random draw for each weight.",
        kind=bool,
    ),
    "sparsity.update_every": Field(
        None, "Steps between two changes of the masks.", kind=int, unit="steps",
        within="[1, inf)", example=100,
    ),
    "sparsity.start": Field(
        None, "When gradual pruning starts.", kind=float, unit=RUN, within="[0, 1)", example=0.1
    ),
    "sparsity.prune_end": Field(
        None, "When gradual pruning reaches sparsity.density; unset: at sparsity.end.", kind=float,
        unit=RUN, within="(0, 1]", example=0.5,
    ),
    "sparsity.tied": Field(
        None, "Whether layers that share channels, as on a residual stream, are pruned together, "
        "and what takes a pruned channel too, so that compact can remove it.", kind=bool,
        needs="an MLP, LeNet5, VGG or ResNet",
    ),
    "sparsity.initial_density": Field(
        None, "Share of the weights that is kept at the start.", kind=float, unit=WEIGHTS,
        within="(0, 1]", example=0.5, needs="to be at least sparsity.density",
    ),
    "sparsity.drop_fraction": Field(
        None, "Share of a layer's kept weights that the first update replaces.", kind=float,
        unit="share of a layer's kept weights", within="(0, 1)", example=0.3,
    ),
    "sparsity.final_drop_fraction": Field(
        None, "Share of a layer's kept weights that the last update replaces.", kind=float,
        unit="share of a layer's kept weights", within="[0, 1)", example=0.005,
        needs="to be at most sparsity.drop_fraction",
    ),
    "sparsity.schedule": Field(
        None, "How the drop fraction falls from the first update to the last.", kind=str,
        choices=("cosine", "linear", "constant"),
    ),
    "sparsity.drop": Field(
        None, "Score of the kept weights; the lowest are dropped.", kind=str, choices=tuple(SCORES)
    ),
    "sparsity.grow": Field(
        None, "Score of the pruned weights; the highest grow.", kind=str, choices=tuple(SCORES)
    ),
    "sparsity.gradient_weight": Field(
        None, "Factor of the gradient in the drop score |w| + factor * |gradient|.", kind=float,
        within="[0, inf)", example=0.1,
    ),
    "sparsity.soft": Field(
        None, "Whether an update grows weights now and drops as many at the next one (EM&S).",
        kind=bool,
    ),
    "sparsity.momentum": Field(
        None, "Decay of the average gradient by which weights grow.", kind=float, within="(0, 1)",
        example=0.9,
    ),
    "sparsity.rounds": Field(
        None, "Rounds of scoring, or batches to train on, before the masks are chosen.", kind=int,
        within="[1, inf)", example=100,
    ),
    "sparsity.alpha": Field(
        None, "Strength of the term that raises thresholds; the density follows from it.",
        kind=float, within="[0, inf)", example=5e-6,
    ),
    "sparsity.initial": Field(
        None, "Threshold at the start, before a sigmoid; the density follows from weight decay.",
        kind=float, example=-10.0,
    ),
    "sparsity.n": Field(
        None, "Weights kept of every m.", kind=int, unit="weights", within="[1, inf)", example=2,
        needs="to be less than sparsity.m",
    ),
    "sparsity.m": Field(
        None, "Weights in a group along the input axis.", kind=int, unit="weights",
        within="[2, inf)", example=4,
    ),
    "sparsity.decay": Field(
        None, "Extra decay of the pruned weights.", kind=float, within="[0, inf)", example=2e-4
    ),
    "sparsity.shuffle": Field(
        None, "Whether to keep each layer's count only, and to place it at random.", kind=bool
    ),
    # The penalty.
    "penalty.beta": Field(
        1e-4, "Strength of the penalty, which is added to the loss; 0: none.", within="[0, inf)"
    ),
    "penalty.samples": Field(
        8, "Images of each device's batch, or of each part of it with train.accumulate, to compare "
        "features on; -1: all.", within="[-1, inf)",
        needs="to be 4 or more, or 2 with penalty.debiased=False",
    ),
    "penalty.every": Field(
        1, "Steps between two steps with the penalty.", unit="steps", within="[1, inf)"
    ),
    "penalty.end": Field(1.0, "When the penalty ends.", unit=RUN, within="[0, 1]"),
    "penalty.batches": Field(
        1, "Sub-batches of penalty.samples over which HSIC is averaged.", within="[1, inf)",
        needs="penalty.similarity=cka for more than 1",
    ),
    "penalty.pairs": Field(
        "group", "Which layers to compare: those of a group (a stage), neighbors in it, or all.",
        choices=("group", "neighbors", "all"),
    ),
    "penalty.decay": Field(
        1.0, "Factor by which a pair counts less for each layer between the two.", within="(0, 1]"
    ),
    "penalty.energy": Field(
        "none", "What a pair counts: its similarity (none), or an energy that goes on parting "
        "layers that are all but equal.", choices=("none", "log", "inverse", "inverse_square"),
    ),
    "penalty.reduction": Field(
        "sum", "How the pairs' similarities become one number.", choices=("sum", "mean")
    ),
    "penalty.debiased": Field(
        True, "Whether to take the debiased estimator; the biased one nears 1 with few samples."
    ),
    "penalty.sync": Field(
        False, "Whether to average HSIC over the devices before the ratio.",
        needs="penalty.similarity=cka",
    ),
    "penalty.kernel": Field(
        "linear", "Kernel of CKA; no single sample dominates rbf by its size.",
        choices=("linear", "rbf"), needs="penalty.similarity=cka for rbf",
    ),
    "penalty.similarity": Field(
        "cka", "Similarity of two layers; the paper compares CKA with CCA.",
        choices=tuple(SIMILARITIES),
    ),
    # Lottery tickets: rounds of training, pruning and rewinding.
    "lottery.rounds": Field(
        0, "Rounds of pruning after the dense one; 0: no lottery.", within="[0, inf)", example=5,
        needs="a sparsity.rule without masks",
    ),
    "lottery.prune": Field(
        0.2, "Share of the remaining weights that each round prunes.",
        unit="share of the remaining weights", within="(0, 1)",
    ),
    "lottery.score": Field(
        "magnitude", "By what a round prunes: |w| over all layers, |w| or attention in each layer.",
        choices=("magnitude", "layer-magnitude", "attentive"),
    ),
    "lottery.rewind": Field(
        0.0, "The point to which each round goes back; 0: the initial weights.", unit=RUN,
        within="[0, 1)", example=0.02,
    ),
    # Layer sparsity: fit along a path of strengths, merge layers, refit; or remove by a score.
    "layer_sparsity.strengths": Field(
        (), "Strengths of the layer penalty, from weak to strong; empty: no layer penalty.",
        within="(0, inf)", increasing=True, example=(0.01, 0.1),
    ),
    "layer_sparsity.score": Field(
        "none", "In place of the penalty: the score by which ReLU layers go, one after the other.",
        choices=("none", "entropy", "cka"),
    ),
    "layer_sparsity.standard_errors": Field(
        1.0, "Standard errors by which a shallower network's validation error may exceed the best.",
        within="[0, inf)",
    ),
    "layer_sparsity.refit_l1": Field(
        0.0, "Strength of the penalty on single connections in the refit.", within="[0, inf)"
    ),
    "layer_sparsity.refit_row_group": Field(
        0.0, "Strength of the penalty on whole units in the refit.", within="[0, inf)"
    ),
    "layer_sparsity.refit_keep_zeros": Field(
        False, "Whether merged weights that are 0 stay 0 in the refit."
    ),
    "layer_sparsity.teacher.active": Field(
        2, "Hidden layers of the teacher that data.name=relu_teacher learns from.",
        within="[1, inf)",
    ),
    "layer_sparsity.teacher.inputs": Field(10, "The teacher's inputs.", within="[1, inf)"),
    "layer_sparsity.teacher.width": Field(16, "Units in its hidden layers.", within="[1, inf)"),
    "layer_sparsity.teacher.examples": Field(
        4000, "Training examples; validation and test have half as many each.", within="[4, inf)"
    ),
    "layer_sparsity.teacher.noise": Field(
        0.3, "Standard deviation of the noise; that of the teacher's output is 1.",
        within="[0, inf)",
    ),
    # Checkpoints.
    "checkpoint.every": Field(
        0, "Steps between checkpoints; 0: by checkpoint.seconds.", unit="steps", within="[0, inf)",
        example=1000, resumable=True,
    ),
    "checkpoint.seconds": Field(
        60.0, "Time between checkpoints where checkpoint.every is 0.", unit="seconds",
        within="[0, inf)", resumable=True,
    ),
    "checkpoint.keep": Field(
        2, "How many of the newest checkpoints to keep.", within="[1, inf)", resumable=True
    ),
    # Watching a run.
    "report.wandb": Field(
        "", "Project of Weights & Biases in which to show the run; empty: none.",
        example="sparse", needs="the package wandb", resumable=True,
    ),
}  # fmt: skip

# What others call some fields, by the last part of the name.
EVERYDAY = {
    "lr": "optimizer.learning_rate",
    "base_lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "l2": "optimizer.weight_decay",
    "bs": "train.batch_size",
    "dataset": "data.name",
    "method": "sparsity.rule",
    "algorithm": "sparsity.rule",
    "weight": "penalty.beta",
    "strength": "penalty.beta",
    "hidden": "model.options.hidden",
}


def unknown_field(
    name: str, what: str = "config field", known: Iterable[str] = tuple(FIELDS)
) -> str:
    """The sentence for a field that does not exist, with the one that was probably meant."""
    usual = EVERYDAY.get(name.rpartition(".")[2].lower())
    if usual:
        return f"Unknown {what} {name!r}: did you mean {usual!r}?"
    return unknown(what, name, known)
