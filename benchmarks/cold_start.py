"""Does it help to correct Adam's cold start of new weights? An MLP on Fashion-MNIST by AdamW.

  python benchmarks/cold_start.py --data_dir=FOLDER

FOLDER holds the TFDS set fashion_mnist (docs/running.md, "Data sets"). RigL and SET at densities
0.05 and 0.01, five seeds; the runs of a seed share initial weights, initial masks and batches.
Prints the accuracy on 6,000 validation images without correction, and its paired difference with
each way of `new_weights`: mean and 95 % t interval, in percentage points. The test set is not used.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from output import interval, print_table

from cka_sr_jax.data import load_dataset
from cka_sr_jax.sparsity import adam_correction, make_rule, ramp, sparse_init, sparsify

STEPS, BATCH, EVERY = 4000, 128, 50
SEEDS = range(5)
WAYS = {"none": None, "exact": adam_correction(), "ramp": ramp(100)}


class MLP(nn.Module):
    """784-300-300-10 with ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(300)(x))
        return nn.Dense(10)(x)


def accuracy(rule: str, density: float, way: str, data: Any, seed: jax.Array) -> jax.Array:
    """Validation accuracy in percent at the end of one training, all inside one compiled loop."""
    (images, labels), (held_out, answers) = data
    schedule = optax.cosine_decay_schedule(1e-3, STEPS)
    update = {"end_step": STEPS * 3 // 4, "update_every": EVERY}
    tx = sparsify(
        optax.adamw(schedule, weight_decay=0.01),
        make_rule(rule, density=density, **update),
        seed=seed,
        new_weights=WAYS[way],
    )
    key = jax.random.key(seed)
    params, opt_state = sparse_init(tx, MLP().init(key, images[:1])["params"])

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = MLP().apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(state: Any, i: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        chosen = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(labels))
        grads = jax.grad(loss)(params, images[chosen], labels[chosen])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, opt_state), jnp.arange(STEPS))
    logits = MLP().apply({"params": params}, held_out)
    return 100 * (logits.argmax(-1) == answers).mean()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    arguments = parser.parse_args()
    fields = {"name": "fashion_mnist", "dir": arguments.data_dir, "cache_dir": ""}
    dataset = load_dataset(ConfigDict(fields | {"validation": 0.1, "downsample": 1}))

    def prepared(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        flat = jnp.asarray(images.reshape(len(images), -1), jnp.float32)
        return (flat / 255 - 0.286) / 0.353, jnp.asarray(labels)

    data = (
        prepared(dataset.train_images, dataset.train_labels),
        prepared(dataset.validation_images, dataset.validation_labels),
    )
    rows = []
    for rule in ("rigl", "set"):
        for density in (0.05, 0.01):
            found = {}
            for way in WAYS:
                run = jax.jit(partial(accuracy, rule, density, way))
                found[way] = [float(run(data, jnp.int32(seed))) for seed in SEEDS]
                print(rule, density, way, [f"{a:.2f}" for a in found[way]], flush=True)
            differences = [interval(np.subtract(found[way], found["none"])) for way in WAYS]
            rows.append([rule, f"{density:g}", interval(found["none"]), *differences[1:]])
    print_table(
        f"AdamW, {STEPS} steps, masks change every {EVERY}, {len(SEEDS)} seeds",
        ["rule", "density", "accuracy", "exact - none", "ramp(100) - none"],
        rows,
    )


if __name__ == "__main__":
    main()
