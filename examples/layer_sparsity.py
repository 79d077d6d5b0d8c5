"""Fewer layers: train ReLU layers away, merge them exactly, and get a shallower network.

`layer_prox` after the optimizer drives the negative part of a layer's weights to 0. Such a layer's
ReLU does nothing on inputs that are not negative, so the layer merges with the next one. The
first layer sees signed inputs and stays. Unlike masks, this saves time on any hardware.

  python examples/layer_sparsity.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cka_sr_jax.layer_sparsity import apply_chain, from_linen, layer_prox, merge_layers

STEPS, RATE = 500, 1e-3
HIDDEN = [layer for _ in range(4) for layer in (nn.Dense(32), nn.relu)]
MODEL = nn.Sequential([*HIDDEN, nn.Dense(1)])


def loss(variables, x, y):
    """Mean squared error."""
    return jnp.mean((MODEL.apply(variables, x) - y) ** 2)


def main():
    """Train with the proximal step, and merge."""
    x = jax.random.normal(jax.random.key(0), (256, 10))
    y = jnp.abs(x[:, :1])  # one hidden layer is enough
    variables = MODEL.init(jax.random.key(1), x)
    layers = ["layers_2", "layers_4", "layers_6"]  # all hidden ones but the first
    tx = optax.chain(optax.adam(RATE), layer_prox(20.0, RATE, layers=layers))
    opt_state = tx.init(variables)

    @jax.jit
    def step(variables, opt_state):
        value, grads = jax.value_and_grad(loss)(variables, x, y)
        updates, opt_state = tx.update(grads, opt_state, variables)
        return optax.apply_updates(variables, updates), opt_state, value

    losses = []
    for _ in range(STEPS):
        variables, opt_state, value = step(variables, opt_state)
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    chain = from_linen(MODEL, variables, x)
    merged = merge_layers(chain)
    for name, found in {"trained": chain, "merged": merged}.items():
        sizes = [found[0].kernel.shape[0], *(layer.kernel.shape[1] for layer in found)]
        weights = sum(np.size(layer.kernel) for layer in found)
        print(f"{name}: {len(found)} layers {' -> '.join(map(str, sizes))}, {weights:,} weights")
    outputs = MODEL.apply(variables, x)
    difference = jnp.max(jnp.abs(apply_chain(merged, x) - outputs)) / jnp.max(jnp.abs(outputs))
    print(f"largest difference of their outputs: {difference:.1e} of the largest output")


if __name__ == "__main__":
    main()
