"""Transformers trained sparse with AdamW, beside dense ones: a decoder of text and a ViT.

  python benchmarks/transformers.py                 (decoder, about half an hour on 2 cores)
  python benchmarks/transformers.py --model vit     (Linen; vit_nnx: NNX)

The decoder has about a million parameters and predicts the next character of the manual in
`pydoc_data.topics`, the first 90 % of which it trains on and the rest of which it is measured on.
The ViT classifies scikit-learn's 8x8 digits, of which a fifth are kept out. Each method trains with
the same seeds, initial weights and batches, at density 0.1 of all kernels (ERK; GMP ranks all
layers together), and embeddings and positions stay dense. After each run the script checks every
layer's count, for GMP their sum, and that every other parameter is dense. Nothing was tuned for the
sparse methods.

Prints the mean and the 95 % t interval over the seeds, and the same of the paired difference from
dense training.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
from flax import nnx
from output import interval, print_table

from cka_sr_jax.sparsity import (
    Rule,
    get_masks,
    layer_counts,
    layers_of,
    leaf_paths,
    make_rule,
    sparse_init,
    sparsify,
)

DENSITY = 0.1
SEEDS = range(3)
CONTEXT = 64
HELD_OUT_WINDOWS = 256
PATCH = 2


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y, y, mask=mask)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(y)


class Decoder(nn.Module):
    """Characters [n, t] to the logits of each one's successor [n, t, characters]."""

    characters: int
    width: int = 128
    depth: int = 5

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.characters, self.width)(tokens)
        x = x + nn.Embed(CONTEXT, self.width, name="positions")(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for i in range(self.depth):
            x = Block(heads=4, name=f"block{i}")(x, mask)
        return nn.Dense(self.characters, name="head")(nn.LayerNorm()(x))


def patches(images: jax.Array) -> jax.Array:
    """[n, h, w] to [n, patches, pixels of a patch]."""
    n, height, width = images.shape
    x = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.transpose(0, 1, 3, 2, 4).reshape(n, -1, PATCH * PATCH)


class ViT(nn.Module):
    """Images [n, 8, 8] to logits [n, 10]."""

    width: int = 64
    depth: int = 4

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, name="embed_patches")(patches(images))
        small = nn.initializers.normal(0.02)
        token = self.param("class_token", small, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("positions", small, (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = Block(heads=4, name=f"block{i}")(x, None)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x)[:, 0])


class NnxBlock(nnx.Module):
    """`Block` in NNX."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.before_attention = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.before_attention(x))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class NnxViT(nnx.Module):
    """`ViT` in NNX."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64, depth: int = 4):
        small = nnx.initializers.normal(0.02)
        self.embed_patches = nnx.Linear(PATCH * PATCH, width, rngs=rngs)
        self.class_token = nnx.Param(small(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(small(rngs.params(), (1, 17, width)))
        self.blocks = nnx.List([NnxBlock(width, 4, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embed_patches(patches(images))
        token = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


Data = tuple[np.ndarray, np.ndarray]  # inputs and targets


class Task(NamedTuple):
    """What is trained: `init(key) -> params`, `logits(params, inputs)`, batches, held-out data."""

    init: Callable[[jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]
    batch: Callable[[np.random.Generator], Data]
    held_out: Data


def decoder() -> Task:
    """The manual, character by character."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet, codes = np.unique(list(text), return_inverse=True)
    train, rest = np.split(codes.astype(np.int32), [int(0.9 * len(codes))])
    print(f"{len(text):,} characters, {len(alphabet)} of them different")

    def windows(of: np.ndarray, starts: np.ndarray) -> Data:
        found = of[starts[:, None] + np.arange(CONTEXT + 1)]
        return found[:, :-1], found[:, 1:]

    model = Decoder(len(alphabet))
    starts = np.linspace(0, len(rest) - CONTEXT - 1, HELD_OUT_WINDOWS).astype(int)
    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))["params"],
        logits=lambda params, inputs: model.apply({"params": params}, inputs),
        batch=lambda rng: windows(train, rng.integers(0, len(train) - CONTEXT, 16)),
        held_out=windows(rest, starts),
    )


def vit(kind: str) -> Task:
    """Digits, by a ViT of Linen or of NNX."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 8, 8).astype(np.float32) / 16, labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    held_out, train = np.split(order, [len(order) // 5])

    def batch(rng: np.random.Generator) -> Data:
        chosen = rng.choice(train, 64, replace=False)
        return images[chosen], labels[chosen]

    if kind == "vit":
        model = ViT()
        init = lambda key: model.init(key, jnp.zeros((1, 8, 8)))["params"]  # noqa: E731
        logits = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
    else:
        graph = nnx.split(NnxViT(nnx.Rngs(0)))[0]
        init = lambda key: nnx.state(NnxViT(nnx.Rngs(key)), nnx.Param)  # noqa: E731
        logits = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731
    return Task(init, logits, batch, (images[held_out], labels[held_out]))


def cross_entropy(task: Task, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    logits = task.logits(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def train(task: Task, rule: Rule | None, seed: int, steps: int, *, layerwise: bool) -> float:
    """Train once; the loss on the data that were held out. `layerwise`: layers have own counts."""
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-3, steps // 10, steps)
    tx = optax.adamw(schedule, weight_decay=0.01)
    params = task.init(jax.random.key(seed))
    if rule is None:
        opt_state = tx.init(params)
    else:
        tx = sparsify(tx, rule, seed=seed)
        params, opt_state = sparse_init(tx, params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        grads = jax.grad(partial(cross_entropy, task))(params, inputs, targets)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        params, opt_state = step(params, opt_state, *task.batch(rng))
    if rule is not None:
        check(params, get_masks(opt_state), layerwise)
    return float(jax.jit(partial(cross_entropy, task))(params, *task.held_out))


def check(params: Any, masks: Any, layerwise: bool) -> None:
    """Exact counts, pruned weights exactly 0, and all but kernels dense."""
    layers, masked = layers_of(params), dict(leaf_paths(masks))
    assert masked.keys() == layers.keys()
    assert all("kernel" in path for path in masked)
    for path, leaf in leaf_paths(params):
        if path in masked:
            assert not np.asarray(leaf)[~np.asarray(masked[path])].any()
        else:  # trained, but for rows of characters that the text does not have
            assert np.mean(np.asarray(leaf) != 0) > 0.9, path
    kept = {path: int(mask.sum()) for path, mask in masked.items()}
    if layerwise:
        assert kept == layer_counts({p: layer.dims for p, layer in layers.items()}, DENSITY)
    else:
        assert sum(kept.values()) == round(DENSITY * sum(mask.size for mask in masked.values()))


def main() -> None:
    """Print the table of one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("decoder", "vit", "vit_nnx"), default="decoder")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    task = decoder() if arguments.model == "decoder" else vit(arguments.model)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))]
    last = {"end_step": arguments.steps * 3 // 4, "update_every": max(arguments.steps // 30, 1)}
    methods: Mapping[str, Rule | None] = {
        "dense": None,
        "RST": make_rule("rst", density=DENSITY),
        "RigL": make_rule("rigl", density=DENSITY, **last),
        "GMP": make_rule("gmp", density=DENSITY, **last),
    }
    losses = {name: [] for name in methods}
    for seed in SEEDS:
        for name, rule in methods.items():
            found = train(task, rule, seed, arguments.steps, layerwise=name != "GMP")
            losses[name].append(found)
            print(f"seed {seed}, {name}: {losses[name][-1]:.4f}", flush=True)
    rows = [
        [name, interval(found, 3), interval(np.subtract(found, losses["dense"]), 3)]
        for name, found in losses.items()
    ]
    rows[0][2] = ""
    print_table(
        f"{arguments.model}, {sum(sizes):,} parameters, density {DENSITY}, {arguments.steps} "
        f"steps, {len(SEEDS)} seeds",
        ["method", "held-out loss", "minus dense"],
        rows,
    )


if __name__ == "__main__":
    main()
