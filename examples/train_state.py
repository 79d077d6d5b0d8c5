"""Sparse training with Flax's `TrainState`: one line more than without.

The parameters are masked once; then the state is made as ever. GraNet starts at half of the
weights and prunes to a tenth. Clipping and weight decay stand inside `sparsify`, so that nothing
after it changes the updates that hold pruned weights at 0.

  python examples/train_state.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from cka_sr_jax import density, get_masks, make_rule, sparse_init, sparsify, summary

STEPS = 200


@jax.jit
def train_step(state, x, y):
    """One step on one batch."""

    def loss(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main():
    """Train, and print what became of it."""
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)

    model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])
    rule = make_rule("granet", density=0.1, end_step=150, prune_end_step=100, update_every=20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
    tx = sparsify(optimizer, rule)
    params, _ = sparse_init(tx, model.init(jax.random.key(2), x)["params"])
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)  # draws the same masks

    for step in range(STEPS):
        state, value = train_step(state, x, y)
        if step % 50 == 0:
            kept = density(get_masks(state.opt_state))
            print(f"step {step:3}: loss {value:.3f}, density {kept:.3f}")
    print(f"step {STEPS}: loss {value:.3f}")
    print(summary(state.params, state.opt_state))


if __name__ == "__main__":
    main()
