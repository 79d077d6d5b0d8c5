"""CKA-SR and RigL in a training loop of your own, around a Linen model.

The model sows the features to compare, the loss adds the penalty on their similarity, and
`sparsify` wraps the optimizer. It prints the task's loss and the mean CKA between the layers,
before and after, and what is left of each layer.

  python examples/linen_loop.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cka_sr_jax import cka_penalty, compare_cka, make_rule, sparse_init, sparsify, summary

STEPS, BATCH, BETA = 200, 128, 1e-2


class MLP(nn.Module):
    """Four hidden layers of equal width, whose features are one stage."""

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.relu(nn.Dense(64)(x))
            self.sow("features", "hidden", x)
        return nn.Dense(5, name="head")(x)


def data(size):
    """Points in 20 dimensions, of five classes."""
    x = jax.random.normal(jax.random.key(0), (size, 20))
    return x, jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(2), (20, 5))), axis=-1)


def mean_cka(model, params, x):
    """Debiased CKA over all of the data, the mean over pairs of different layers."""
    values = compare_cka(model, {"params": params}, list(x.reshape(-1, BATCH, 20))).values
    return (values.sum() - len(values)) / (values.size - len(values))


def main():
    """Train, and print what became of it."""
    model = MLP()
    x, y = data(4 * BATCH)
    params = model.init(jax.random.key(1), x[:1])["params"]
    rule = make_rule("rigl", density=0.2, end_step=150, update_every=20)
    tx = sparsify(optax.adam(3e-3), rule)
    params, opt_state = sparse_init(tx, params)  # pruned from the first step on

    def loss(params, x, y):
        logits, sown = model.apply({"params": params}, x, mutable=["features"])
        task = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return task + BETA * cka_penalty(sown["features"], samples=16), task

    @jax.jit
    def step(params, opt_state, x, y):
        (_, task), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, task

    before = mean_cka(model, params, x)
    losses = []
    for i in range(STEPS):
        start = i * BATCH % len(x)
        batch = x[start : start + BATCH], y[start : start + BATCH]
        params, opt_state, value = step(params, opt_state, *batch)
        losses.append(float(value))

    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"mean CKA between layers {before:.3f} -> {mean_cka(model, params, x):.3f}")
    print(summary(params, opt_state))


if __name__ == "__main__":
    main()
