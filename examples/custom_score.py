"""A score of your own: which weights go, and which come.

A score is a plain function of one layer, `(key, mask, param, grad) -> array`, higher is better. It
goes into any rule as `drop=` or `grow=`. This one grows weights by gradient, but prefers inputs
that have few connections, so that fewer inputs are cut off. RigL's own score is beside it.

  python examples/custom_score.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cka_sr_jax import get_masks, make_rule, sparse_init, sparsify, summary

STEPS = 150
MODEL = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])


def scarce_inputs(key, mask, param, grad):
    """|dL/dw| divided by the number of connections that the weight's input has."""
    count = jnp.sum(mask, axis=-1, keepdims=True)
    return jnp.abs(grad) / (1 + count)


def loss(params, x, y):
    """Mean cross-entropy."""
    logits = MODEL.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(grow, x, y):
    """Train by RigL with this score; the losses, parameters and state."""
    rule = make_rule("rigl", density=0.05, end_step=120, update_every=10, grow=grow)
    tx = sparsify(optax.adam(3e-3), rule)
    params, opt_state = sparse_init(tx, MODEL.init(jax.random.key(2), x)["params"])

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    losses = []
    for _ in range(STEPS):
        params, opt_state, value = step(params, opt_state)
        losses.append(float(value))
    return losses, params, opt_state


def cut_off(opt_state):
    """How many inputs of all layers have no connection."""
    masks = jax.tree.leaves(get_masks(opt_state))
    return sum(int(jnp.sum(~mask.any(axis=-1))) for mask in masks)


def main():
    """Train with both scores."""
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)
    for name, grow in {"gradient": "gradient", "scarce inputs": scarce_inputs}.items():
        losses, params, opt_state = train(grow, x, y)
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        print(f"{name}: {cut_off(opt_state)} inputs without a connection")
    print(summary(params, opt_state))


if __name__ == "__main__":
    main()
