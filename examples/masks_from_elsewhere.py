"""Masks that come from elsewhere: held fixed by `static`, or as a rule's start.

A mask is an array of bools of the parameter's shape; any code may make it. Here NumPy keeps the
largest weights of each layer. `static(masks)` trains under them as they are. With `start=masks`
RigL begins with them and moves a part of the weights to better places.

  python examples/masks_from_elsewhere.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cka_sr_jax import get_masks, make_rule, sparse_init, sparsify, static, summary

STEPS = 150
MODEL = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])


def largest(kernel, density):
    """The mask of the largest weights, in NumPy."""
    size = np.abs(np.asarray(kernel))
    return size >= np.quantile(size, 1 - density)


def loss(params, x, y):
    """Mean cross-entropy."""
    logits = MODEL.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(rule, params, x, y):
    """Train under a rule; prints the loss and returns parameters and state."""
    tx = sparsify(optax.adam(3e-3), rule)
    params, opt_state = sparse_init(tx, params)

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    losses = []
    for _ in range(STEPS):
        params, opt_state, value = step(params, opt_state)
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return params, opt_state


def moved(masks, opt_state):
    """How many of the weights in `masks` are pruned by now."""
    pairs = [(masks[name]["kernel"], tree["kernel"]) for name, tree in get_masks(opt_state).items()]
    return sum(int(np.sum(before & ~np.asarray(after))) for before, after in pairs)


def main():
    """Train under the same masks twice, fixed and moving."""
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)
    params = MODEL.init(jax.random.key(2), x)["params"]
    masks = {name: {"kernel": largest(tree["kernel"], 0.1)} for name, tree in params.items()}

    print("the masks as they are:")
    fixed, fixed_state = train(static(masks), params, x, y)
    print(f"{moved(masks, fixed_state)} weights moved")
    print(summary(fixed, fixed_state))

    print("RigL from the same masks:")
    rule = make_rule("rigl", density=0.1, end_step=100, update_every=20, start=masks)
    _, state = train(rule, params, x, y)
    print(f"{moved(masks, state)} weights moved")


if __name__ == "__main__":
    main()
