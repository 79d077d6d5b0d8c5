"""A step of your own on all devices, by `jax.pmap`.

Each device has a part of the batch. Gradients are averaged before `tx.update`, so every device
computes the same masks from the same numbers. With `axis_name` the penalty averages HSIC over the
devices before the ratio; without it each device compares its own examples. To try it without
accelerators:

  XLA_FLAGS=--xla_force_host_platform_device_count=4 NPROC=8 python examples/several_devices.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cka_sr_jax import cka_penalty, get_masks, make_rule, sparse_init, sparsify, summary

STEPS, PER_DEVICE = 100, 32


class MLP(nn.Module):
    """Three hidden layers of equal width, whose features are one stage."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(64)(x))
            self.sow("features", "hidden", x)
        return nn.Dense(5, name="head")(x)


def main():
    """Train, and print what became of it."""
    devices = jax.local_device_count()
    x = jax.random.normal(jax.random.key(0), (devices, PER_DEVICE, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)
    model = MLP()
    tx = sparsify(optax.adam(3e-3), make_rule("rigl", density=0.1, end_step=80, update_every=10))
    params, opt_state = sparse_init(tx, model.init(jax.random.key(2), x[0])["params"])

    def loss(params, x, y):
        logits, sown = model.apply({"params": params}, x, mutable=["features"])
        task = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return task + 1e-3 * cka_penalty(sown["features"], samples=16, axis_name="devices")

    def step(params, opt_state, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        value, grads = jax.lax.pmean((value, grads), "devices")  # before the update
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.pmap(step, axis_name="devices")
    params, opt_state = jax.tree.map(lambda a: jnp.stack([a] * devices), (params, opt_state))
    losses = []
    for _ in range(STEPS):
        params, opt_state, value = step(params, opt_state, x, y)
        losses.append(float(value[0]))

    masks = [np.asarray(mask) for mask in jax.tree.leaves(get_masks(opt_state))]
    same = all((mask == mask[:1]).all() for mask in masks)
    print(f"{devices} devices: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"equal masks on all devices: {same}")
    params, opt_state = jax.tree.map(lambda a: a[0], (params, opt_state))
    print(summary(params, opt_state))


if __name__ == "__main__":
    main()
