"""From a dense checkpoint to a sparse network: prune gradually and fine-tune.

The dense weights are stored and read again, as those of a network from elsewhere would be. Gradual
magnitude pruning starts with all of them and cuts the smallest step by step, while the others learn
to do without. For comparison it prints the loss if the kept weights had not been fine-tuned.

  python examples/fine_tune.py
"""

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import serialization

from cka_sr_jax import apply_masks, get_masks, make_rule, sparse_init, sparsify, summary

DENSITY, STEPS = 0.2, 200
MODEL = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])


@jax.jit
def loss(params, x, y):
    """Mean cross-entropy."""
    logits = MODEL.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(tx, params, opt_state, x, y):
    """The parameters and the state after all steps."""

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(STEPS):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def main():
    """Train dense, store, read, prune and fine-tune."""
    x = jax.random.normal(jax.random.key(0), (512, 20))
    y = jnp.argmax(jnp.tanh(x @ jax.random.normal(jax.random.key(1), (20, 5))), axis=-1)
    fresh = MODEL.init(jax.random.key(2), x)["params"]
    adam = optax.adam(3e-3)
    trained, _ = train(adam, fresh, adam.init(fresh), x, y)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "dense.msgpack")
        checkpoint.write_bytes(serialization.to_bytes(trained))
        dense = serialization.from_bytes(fresh, checkpoint.read_bytes())
    print(f"dense: loss {loss(dense, x, y):.4f}")

    rule = make_rule("gmp", density=DENSITY, end_step=STEPS // 2, update_every=5)
    tx = sparsify(optax.adam(3e-3), rule)
    params, opt_state = sparse_init(tx, dense)  # nothing is cut yet
    params, opt_state = train(tx, params, opt_state, x, y)
    cut = apply_masks(dense, get_masks(opt_state))
    print(f"the dense weights of the same {DENSITY:.0%}: loss {loss(cut, x, y):.4f}")
    print(f"pruned to {DENSITY:.0%} and fine-tuned: loss {loss(params, x, y):.4f}")
    print(summary(params, opt_state))


if __name__ == "__main__":
    main()
