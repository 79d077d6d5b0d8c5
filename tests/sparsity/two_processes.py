"""One of two processes that train together, or one alone; `test_sharding.py` starts them.

  python two_processes.py PROCESS_ID PORT      PROCESS_ID 0 or 1, or -1 for one process alone

It prints a line for each rule: its name and the checksums of the masks and of the parameters after
some steps, the parameters sharded over four devices (two in each process, by XLA_FLAGS).
"""

import sys
import zlib

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cka_sr_jax.sparsity import get_masks, make_rule, sparse_init, sparsify

SHAPES = {
    "up": {"kernel": (16, 32), "bias": (32,)},
    "down": {"kernel": (32, 16), "bias": (16,)},
}
COMMON = {"density": 0.3, "end_step": 6, "update_every": 2}
RULES = {"rst": {"density": 0.3}, "set": COMMON, "rigl": COMMON, "granet": COMMON, "gmp": COMMON}


def checksum(tree):
    """Of the whole arrays, the same on every process."""
    whole = multihost_utils.process_allgather(tree, tiled=True)
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole)))


def main():
    """Train by each rule and print the checksums."""
    process, port = int(sys.argv[1]), sys.argv[2]
    if process >= 0:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = jax.make_mesh((2, 2), ("x", "y"))
    rng = np.random.default_rng(0)

    def put(shape):
        # Multiples of 1/64, whose sums are exact in any order.
        value = np.round(64 * rng.normal(size=shape)).astype(np.float32) / 64
        sharding = NamedSharding(mesh, P("x", "y") if len(shape) > 1 else P())
        return jax.make_array_from_callback(shape, sharding, lambda index: value[index])

    start = jax.tree.map(put, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    for name, options in RULES.items():
        tx = sparsify(optax.sgd(0.5, momentum=0.5), make_rule(name, **options))
        params, state = sparse_init(tx, start)

        @jax.jit
        def step(params, state, tx=tx):
            grads = jax.tree.map(lambda p: 0.25 - p, params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(8):
            params, state = step(params, state)
        print(name, checksum(get_masks(state)), checksum(params), flush=True)


if __name__ == "__main__":
    main()
