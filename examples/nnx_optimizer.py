"""Sparse training of an NNX model by `nnx.Optimizer`.

`nnx.Optimizer` reads the model's parameters when it is made, so they are masked before. The
modules sow what is compared, and the CKA of the trained model is that of the whole data set. It
needs Flax 0.12: the `nnx.Optimizer` of 0.11 takes no states that leave out parameters.

  python examples/nnx_optimizer.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cka_sr_jax import compare_cka, make_rule, sparse_init, sparsify, summary

STEPS = 150


class Block(nnx.Module):
    """A residual layer that sows its output."""

    def __init__(self, width, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        x = x + nnx.relu(self.linear(x))
        self.sow(nnx.Intermediate, "out", x)
        return x


class Network(nnx.Module):
    """Three blocks between two linear layers."""

    def __init__(self, rngs):
        self.stem = nnx.Linear(20, 48, rngs=rngs)
        self.first, self.second, self.third = (Block(48, rngs) for _ in range(3))
        self.head = nnx.Linear(48, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.third(self.second(self.first(self.stem(x)))))


def loss(model, x, y):
    """Mean cross-entropy; outside of `nnx.capture` what the blocks sow is dropped."""
    logits, _ = nnx.capture(model, nnx.Intermediate)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@nnx.jit
def train_step(model, optimizer, x, y):
    """One update of the model and the masks."""
    value, grads = nnx.value_and_grad(loss)(model, x, y)
    optimizer.update(model, grads)
    return value


def main():
    """Train, and print what became of it."""
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)

    model = Network(nnx.Rngs(0))
    tx = sparsify(optax.adam(3e-3), make_rule("set", density=0.1, end_step=100, update_every=20))
    params, _ = sparse_init(tx, nnx.state(model, nnx.Param))
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)  # draws the same masks

    losses = [float(train_step(model, optimizer, x, y)) for _ in range(STEPS)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(summary(nnx.state(model, nnx.Param), optimizer.opt_state))
    found = compare_cka(model, None, list(x.reshape(4, 128, 20)))
    for name, row in zip(found.names, found.values, strict=True):
        print(f"CKA of {name} with each:", " ".join(f"{value:.2f}" for value in row))


if __name__ == "__main__":
    main()
