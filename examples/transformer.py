"""A small transformer, trained sparse with CKA-SR on its residual stream.

Attention's kernels have two axes of outputs or inputs (heads and their size). Rules know them as
the matrices that they are, and leave embeddings, positions, norms and biases dense; the table at
the end says so for each parameter. The blocks sow the residual stream, and `stage_features` makes
one stage of it.

The task is to say how often the first token occurs in the sequence.

  python examples/transformer.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cka_sr_jax import cka_penalty, make_rule, sparse_init, sparsify, stage_features, summary

TOKENS, LENGTH, WIDTH, STEPS = 4, 8, 32, 200


class Block(nn.Module):
    """Attention and two dense layers, each around the residual stream."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(y)
        y = nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm()(x)))
        x = x + nn.Dense(WIDTH, name="down")(y)
        self.sow("features", "stream", x)
        return x


class Transformer(nn.Module):
    """Tokens [n, length] to logits [n, length + 1]."""

    @nn.compact
    def __call__(self, tokens):
        positions = self.param("positions", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(TOKENS, WIDTH)(tokens) + positions
        for i in range(2):
            x = Block(name=f"block{i}")(x)
        return nn.Dense(LENGTH + 1, name="head")(nn.LayerNorm()(x[:, 0]))


def main():
    """Train, and print what became of it."""
    model = Transformer()
    tokens = jax.random.randint(jax.random.key(0), (512, LENGTH), 0, TOKENS)
    counts = jnp.sum(tokens == tokens[:, :1], axis=1)
    params = model.init(jax.random.key(1), tokens[:1])["params"]
    rule = make_rule("rigl", density=0.25, end_step=150, update_every=25, exclude="head")
    tx = sparsify(optax.adamw(3e-3), rule)
    params, opt_state = sparse_init(tx, params)

    def loss(params, tokens, counts):
        logits, sown = model.apply({"params": params}, tokens, mutable=["features"])
        features = stage_features(sown["features"])  # {"stage1": two of [n, length, width]}
        task = optax.softmax_cross_entropy_with_integer_labels(logits, counts).mean()
        return task + 1e-3 * cka_penalty(features, samples=16), task

    @jax.jit
    def step(params, opt_state, tokens, counts):
        (_, task), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens, counts)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, task

    losses = []
    for i in range(STEPS):
        batch = slice(i % 8 * 64, i % 8 * 64 + 64)
        params, opt_state, value = step(params, opt_state, tokens[batch], counts[batch])
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} -> {sum(losses[-8:]) / 8:.3f}")
    print(summary(params, opt_state))


if __name__ == "__main__":
    main()
