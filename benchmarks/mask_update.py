"""Mask updates against dense training steps, and whole training loops with updates.

  python benchmarks/mask_update.py

Prints five tables:

1. One RigL update (magnitude drop, gradient growth, each layer alone) and one magnitude update
   (GMP, all layers ranked together) against a dense SGD step, on a CNN of about 290k parameters at
   batch 16.
2. 100 training steps with a RigL update every 100 and every 10 steps against 100 dense ones.
3. One update of each at 25 million parameters, with its temporary memory.
4. Seconds to compile an update for 10, 50 and 100 convolutions of four shapes.
5. Bytes a parameter that a step of AdamW needs beyond its own, with rules: state and temporaries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from output import print_table

from cka_sr_jax.accounting import interleaved_seconds
from cka_sr_jax.sparsity import Rule, apply_masks, dense, get_masks, make_rule, sparsify

STEPS = 100
X = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
Y = jnp.arange(16) % 10


class CNN(nn.Module):
    """Four convolutions and a head, 290k parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate((32, 64, 128, 170)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=1 if i == 0 else 2)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def loss(params: Any) -> jax.Array:
    logits = CNN().apply({"params": params}, X)
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def rigl(update_every: int) -> Rule:
    """RigL at density 0.1, far from the end of its schedule."""
    return make_rule("rigl", density=0.1, end_step=10**6, update_every=update_every)


def gmp() -> Rule:
    """GMP somewhere in the middle of its schedule."""
    return make_rule("gmp", density=0.1, end_step=1000)


def one_update(rule: Rule, params: Any, grads: Any) -> tuple[Callable[[], Any], int]:
    """A compiled update of the rule's masks, and its temporary bytes."""
    masks = jax.jit(rule.init)(jax.random.key(0), params)
    arguments = (jax.random.key(1), jnp.int32(500), masks, params, grads)
    compiled = jax.jit(rule.update).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return lambda: compiled(*arguments), memory.temp_size_in_bytes if memory else 0


def step_memory(rule: Rule, params: Any) -> int:
    """Temporary bytes of a step of SGD with momentum and the rule, given gradients."""
    tx = sparsify(optax.sgd(0.01, momentum=0.9), rule)

    def step(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, params).compile()
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes if memory else 0


def training(rule: Rule, params: Any, steps: int) -> Callable[[], Any]:
    """`steps` training steps that start after step 0, which never updates the masks."""
    tx = sparsify(optax.sgd(0.01, momentum=0.9), rule)

    @jax.jit
    def step(params: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    start = tx.init(params)._replace(step=jnp.int32(1))
    masked = apply_masks(params, get_masks(start))

    def run() -> Any:
        current, opt_state = masked, start
        for _ in range(steps):
            current, opt_state = step(current, opt_state)
        return current

    return run


def small_network() -> None:
    """Updates and training loops on the CNN."""
    params = CNN().init(jax.random.key(0), X)["params"]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    grads = jax.grad(loss)(params)
    calls = {
        "dense step": training(dense(), params, 1),
        "RigL update": one_update(rigl(100), params, grads)[0],
        "magnitude update": one_update(gmp(), params, grads)[0],
    }
    inner = dict.fromkeys(calls, 10)
    times = interleaved_seconds(calls, repeats=15, inner=inner)
    rows = [
        [name, f"{1e3 * seconds:.2f}", f"{seconds / times['dense step']:.2f}"]
        for name, seconds in times.items()
    ]
    print_table(f"One mask update, CNN of {size} parameters", ["", "ms", "dense steps"], rows)

    calls = {
        "dense": training(dense(), params, STEPS),
        "RigL, never updated": training(rigl(10**5), params, STEPS),
        "RigL every 100": training(rigl(100), params, STEPS),
        "RigL every 10": training(rigl(10), params, STEPS),
    }
    times = interleaved_seconds(calls, repeats=21)
    rows = [
        [name, f"{1e3 * seconds / STEPS:.2f}", f"{seconds / times['dense']:.3f}"]
        for name, seconds in times.items()
    ]
    print_table(f"{STEPS} training steps", ["", "ms a step", "of dense"], rows)


def large_network() -> None:
    """Updates at 25 million parameters, in ten layers."""
    keys = jax.random.split(jax.random.key(0), 20)
    params, grads = (
        {f"layer{i}": jax.random.normal(keys[start + i], (1600, 1600)) for i in range(10)}
        for start in (0, 10)
    )
    size = sum(leaf.size for leaf in params.values())
    rows = []
    for name, rule in (("RigL", rigl(100)), ("magnitude", gmp())):
        update, temporary = one_update(rule, params, grads)
        seconds = interleaved_seconds({name: update}, repeats=3)[name]
        memory = (temporary, step_memory(rule, params))
        rows.append([name, f"{seconds:.2f}", *(f"{part / (4 * size):.2f}" for part in memory)])
    columns = ["", "s", "temporary memory / parameters", "of a whole step"]
    print_table(f"One mask update, {size} parameters", columns, rows)


def compile_times() -> None:
    """How compile time grows with the number of layers, after a first compilation of another."""
    rows = []
    jax.jit(lambda x: jnp.sum(x * 2)).lower(X).compile()
    options = {"density": 0.1, "end_step": 10**6}
    rules = {name: make_rule(name, **options) for name in ("set", "rigl", "granet", "gmp")}
    for name, rule in rules.items():
        seconds = []
        for number in (10, 50, 100):
            params = {
                f"block{i}": {"kernel": jax.ShapeDtypeStruct((3, 3, w, w), jnp.float32)}
                for i in range(number)
                for w in (16 * 2 ** (4 * i // number),)
            }
            tx = sparsify(optax.sgd(0.01, momentum=0.9), rule)
            state = jax.eval_shape(tx.init, params)
            start = time.perf_counter()
            jax.jit(tx.update).lower(params, state, params).compile()
            seconds.append(time.perf_counter() - start)
        rows.append([name, *(f"{s:.2f}" for s in seconds), f"{seconds[-1] / seconds[0]:.1f}"])
    columns = ["", "10 layers", "50 layers", "100 layers", "100 / 10"]
    print_table("Seconds to compile an update of sparsify", columns, rows)


def adamw_memory() -> None:
    """State and temporaries of a step of AdamW with a rule, less those of AdamW alone."""
    params = {f"layer{i}": jax.ShapeDtypeStruct((1600, 1600), jnp.float32) for i in range(10)}
    size = sum(leaf.size for leaf in params.values())

    def bytes_of(tx: optax.GradientTransformation) -> tuple[int, int]:
        state = jax.eval_shape(tx.init, params)

        def step(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        memory = compiled.memory_analysis()
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        return held, memory.temp_size_in_bytes if memory else 0

    alone = bytes_of(optax.adamw(1e-3))
    rows = []
    for name in ("rst", "set", "rigl", "granet", "gmp"):
        options = {} if name == "rst" else {"end_step": 10**6}
        rule = make_rule(name, density=0.1, **options)
        for explored in (True, False) if name != "rst" else (False,):
            tx = sparsify(optax.adamw(1e-3), rule, track_explored=explored)
            more = [(a - b) / size for a, b in zip(bytes_of(tx), alone, strict=True)]
            rows.append([name, "yes" if explored else "no", *(f"{n:.2f}" for n in more)])
    columns = ["", "explored", "state, bytes a parameter", "temporaries, bytes a parameter"]
    print_table("A step of AdamW: what the rule adds", columns, rows)


if __name__ == "__main__":
    small_network()
    large_network()
    compile_times()
    adamw_memory()
