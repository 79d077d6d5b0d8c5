"""Blocks removed from a ResNet by the branch penalty, by CKA and at random: error at each depth.

  python benchmarks/block_removal.py TFDS_FOLDER

ResNet-20 of width 8 on Fashion-MNIST at 14x14 (means of 2x2 pixels), SGD with momentum, 3 seeds.
The 7 blocks whose shortcut is the identity may go. "CKA" and "random" remove one at a time and
train 150 steps after each; CKA scores blocks on 500 training images. "branch penalty" trains with
`branch_prox` from the start, once for each strength, drops the blocks whose branch adds exactly 0,
and trains 300 steps without it. All start with 600 steps from the same weights. Prints, for each
number of blocks left, the test error before and after the last training as mean and range over the
seeds that reach it, and the share of the whole network's time of inference. Nothing is chosen by
these errors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from output import spread

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.data import batch_indices, load_dataset
from cka_sr_jax.layer_sparsity import branch_prox, cka_without_blocks
from cka_sr_jax.models import ResNet, compact
from cka_sr_jax.report import markdown_table
from cka_sr_jax.training import default_config

STEPS, BETWEEN, AFTER, BATCH, SCORED = 600, 150, 300, 128, 500
SEEDS, STRENGTHS, RATE = range(3), (0.4, 0.6, 0.8, 1.0, 1.5, 2.5), 0.1
COLUMNS = ["method", "blocks", "seeds", "before", "after", "parameters", "time", "steps"]


class Data(NamedTuple):
    """Images [n, 14, 14, 1] and labels."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Network(NamedTuple):
    """A model and its variables."""

    model: ResNet
    variables: Any


def load(folder: str) -> Data:
    """Fashion-MNIST, normalized by the training images' mean and deviation."""
    config = default_config().data
    config.name, config.dir, config.validation = "fashion_mnist", folder, 0.0
    data = load_dataset(config)

    def small(images: np.ndarray) -> np.ndarray:
        return images.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4), dtype=np.float32)

    train, test = small(data.train_images), small(data.test_images)
    mean, deviation = train.mean(), train.std()
    return Data(
        ((train - mean) / deviation, data.train_labels),
        ((test - mean) / deviation, data.test_labels),
    )


def fit(network: Network, data: Data, steps: int, seed: int, strength: float = 0.0) -> Network:
    """Train from the network's weights, with the branch penalty where it has a strength."""
    model, images, labels = network.model, *data.train
    schedule = optax.cosine_decay_schedule(RATE, steps)
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    if strength:
        tx = optax.chain(
            tx, branch_prox(strength, schedule, [f"{b}/bn2" for b in removable(model)])
        )

    @jax.jit
    def step(variables: Any, opt_state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, changed = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            value = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return value, changed["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, opt_state

    variables, opt_state = network.variables, tx.init(network.variables["params"])
    for i in range(steps):
        batch = batch_indices(seed, i, len(labels), BATCH)
        variables, opt_state = step(variables, opt_state, images[batch], labels[batch])
    return Network(model, variables)


def removable(model: ResNet) -> list[str]:
    """The blocks that add their input."""
    return [name for name, projects in model.block_names.items() if not projects]


def without(network: Network, block: str | None = None) -> Network:
    """The network without a block, or without all whose branch adds 0."""
    model, variables = network
    params = dict(variables["params"])
    if block is not None:
        zeros = jax.tree.map(jnp.zeros_like, params[block]["bn2"])
        params[block] = {**params[block], "bn2": zeros}
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    image = jax.ShapeDtypeStruct((1, 14, 14, 1), jnp.float32)
    small = compact(model, {**variables, "params": params}, masks, image)
    return Network(small.model, small.variables)


def scores(network: Network, data: Data) -> dict[str, float]:
    """1 - CKA without each block, of the features that the head is given."""
    model, variables = network

    def features(params: Any, x: Any) -> Any:
        _, sown = model.apply({**variables, "params": params}, x, train=False, mutable=["features"])
        return sown["features"]["stage3"][-1].mean((1, 2))

    images = jnp.asarray(data.train[0][:SCORED])
    return cka_without_blocks(features, variables["params"], removable(model), images)


@partial(jax.jit, static_argnums=0)
def _correct(model: ResNet, variables: Any, x: Any, y: Any) -> Any:
    return (jnp.argmax(model.apply(variables, x, train=False), -1) == y).sum()


def error(network: Network, data: Data) -> float:
    """Share of wrong test images."""
    parts = [slice(i, i + 1000) for i in range(0, len(data.test[1]), 1000)]
    right = sum(int(_correct(*network, data.test[0][p], data.test[1][p])) for p in parts)
    return 1 - right / len(data.test[1])


def one_by_one(
    first: Network, data: Data, seed: int, choose: Callable[[Network], str]
) -> Iterable[tuple[Network, Network, int]]:
    """(before, after, steps in all) of each removal."""
    network, steps = first, STEPS
    while removable(network.model):
        before = without(network, choose(network))
        steps += BETWEEN
        network = fit(before, data, BETWEEN, seed + 100)
        yield before, network, steps


def path(method: str, first: Network, fresh: Network, data: Data, seed: int) -> Iterable[Any]:
    """(before, after, steps in all) of each network of a method."""
    rng = np.random.default_rng(seed)
    if method == "CKA":
        yield from one_by_one(
            first, data, seed, lambda n: min((s := scores(n, data)), key=lambda b: s[b])
        )
    elif method == "random":
        yield from one_by_one(first, data, seed, lambda n: str(rng.choice(removable(n.model))))
    else:
        for strength in STRENGTHS:
            before = without(fit(fresh, data, STEPS, seed, strength))
            yield before, fit(before, data, AFTER, seed + 100), STEPS + AFTER


def main() -> None:
    """Print one table."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: block_removal.py TFDS_FOLDER")
    data = load(sys.argv[1])
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in SEEDS:
        model = ResNet(10, depth=20, width=8)
        init = jax.jit(partial(model.init, train=False))
        fresh = Network(model, dict(init(jax.random.key(seed), data.train[0][:2])))
        first = fit(fresh, data, STEPS, seed)
        for method in ("CKA", "random", "branch penalty"):
            began, seen = time.perf_counter(), set()
            whole = [(first, first, STEPS)] if method == "CKA" else []
            for before, after, steps in [*whole, *path(method, first, fresh, data, seed)]:
                blocks = len(after.model.block_names)
                if blocks in seen:  # of equal depths the first, of the least strength
                    continue
                seen.add(blocks)
                x = data.test[0][:500]
                calls = {
                    name: partial(_forward, network, x)
                    for name, network in (("whole", first), ("small", after))
                }
                seconds = interleaved_seconds(calls, 9, dict.fromkeys(calls, 1))
                name = "whole network" if after is first else method
                found.setdefault((name, blocks), []).append({
                    "before": error(before, data),
                    "after": error(after, data),
                    "parameters": sum(a.size for a in jax.tree.leaves(after.variables["params"])),
                    "time": seconds["small"] / seconds["whole"],
                    "steps": steps,
                })  # fmt: skip
            print(f"{method}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    order = ["whole network", "CKA", "random", "branch penalty"]
    rows = []
    for (method, blocks), values in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), -item[0][1])
    ):
        digits = {"before": 4, "after": 4, "parameters": 0, "time": 2, "steps": 0}
        cells = [spread((v[name] for v in values), d) for name, d in digits.items()]
        rows.append([method, str(blocks), str(len(values)), *cells])
    print(markdown_table(COLUMNS, rows))


def _forward(network: Network, x: Any) -> Any:
    return jax.block_until_ready(_logits(network.model, network.variables, x))


@partial(jax.jit, static_argnums=0)
def _logits(model: ResNet, variables: Any, x: Any) -> Any:
    return model.apply(variables, x, train=False)


if __name__ == "__main__":
    main()
