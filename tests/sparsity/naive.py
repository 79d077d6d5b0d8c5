"""Naive NumPy loops of what rules do, and runs to compare with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.sparsity import (
    Change,
    get_masks,
    layer_counts,
    make_rule,
    sparse_init,
    sparsify,
)
from cka_sr_jax.sparsity.random_places import fold_in_path

SHAPES = {"a": (6, 5), "b": (3, 3, 2, 4), "c": (9, 3)}


END = 10


COMMON = {"density": 0.3, "end_step": END, "update_every": 2}


# Every rule that masks with a schedule or without, by a label whose first word is its name.
RULES = {
    "rst": {"density": 0.3},
    "set": COMMON,
    "rigl": COMMON,
    "snfs": COMMON,
    "mest": {**COMMON, "soft": True},
    "granet": COMMON,
    "gmp": COMMON,
    "gmp erk": {**COMMON, "distribution": "erk"},
    "channels": COMMON,
}


def random_layers(seed):
    """Parameters and gradients with ties: values on a coarse grid."""
    rng = np.random.default_rng(seed)
    params, grads = (
        {
            path: (np.round(4 * rng.standard_normal(shape)) / 4).astype(np.float32)
            for path, shape in SHAPES.items()
        }
        for _ in range(2)
    )
    bias = {"bias": np.ones(3, np.float32)}
    return params | bias, grads | bias


def best(scores, candidates, k):
    """Indices of the k candidates of highest score, the lowest index first among equals."""
    order = [i for i in range(scores.size) if candidates[i]]
    order.sort(key=lambda i: (-scores[i], i))
    return order[: max(k, 0)]


def naive_replace(mask, drop_score, grow_score, keep, add):
    """Keep the best `keep` of the mask one by one, then add the best `add` of all others."""
    new = np.zeros(mask.size, bool)
    for i in best(drop_score.ravel(), mask.ravel(), keep):
        new[i] = True
    for i in best(grow_score.ravel(), ~new, add):
        new[i] = True
    return new.reshape(mask.shape)


def uniform_of(key, path, shape):
    """The random growth scores of a layer, from the key as the rule derives it."""
    return np.asarray(jax.random.uniform(jax.random.split(fold_in_path(key, path))[1], shape))


def naive_global(masks, params, count):
    """The `count` largest |w| of all layers' masks together."""
    paths = sorted(masks)
    flat = np.concatenate([np.abs(params[p]).ravel() for p in paths])
    where = np.concatenate([masks[p].ravel() for p in paths])
    chosen = np.zeros(flat.size, bool)
    chosen[best(flat, where, count)] = True
    parts = np.split(chosen, np.cumsum([masks[p].size for p in paths])[:-1])
    return {p: part.reshape(masks[p].shape) for p, part in zip(paths, parts, strict=True)}


def count_at(step, initial, final):
    return round(final + (initial - final) * (1 - min(step, END) / END) ** 3)


def naive_update(name, share, masks, params, grads, key, step):
    """What each rule should do, layer by layer and weight by weight."""
    size = sum(mask.size for mask in masks.values())
    erk, half = layer_counts(SHAPES, 0.3), layer_counts(SHAPES, 0.6)
    if name in ("gmp", "granet", "granet_dense"):
        start = sum(half.values()) if name == "granet" else size
        masks = naive_global(masks, params, count_at(step, start, round(0.3 * size)))
        if name == "gmp":
            return masks
    new = {}
    for path, mask in masks.items():
        w, g = np.abs(params[path]), np.abs(grads[path])
        n = int(mask.sum())
        moved = int(np.floor(np.float32(share) * np.float32(n)))
        if name == "gmp_erk":
            keep, moved = count_at(step, mask.size, erk[path]), 0
        elif name == "mest_soft":
            keep = erk[path]
            # The last update only drops.
            moved = int(np.floor(np.float32(share) * np.float32(keep))) if step < END else 0
        else:
            keep = n - moved
        drop = w + np.float32(0.5) * g if name == "mest" else w
        grow = (
            g
            if name in ("rigl", "snfs", "granet", "granet_dense")
            else uniform_of(key, path, mask.shape)
        )
        new[path] = naive_replace(mask, drop, grow, keep, moved)
    return new


def run(rule, steps, grads_at=lambda step, params: params, states=None):
    """Masks after each update of a training without a model; `states` collects the states."""
    params = {k: jnp.asarray(v) for k, v in random_layers(0)[0].items()}
    tx = sparsify(optax.sgd(0.01), rule)
    params, state = sparse_init(tx, params)
    history = [get_masks(state)]
    one = step_of(tx)
    for step in range(steps):
        params, state = one(params, state, grads_at(step, params))
        history.append(get_masks(state))
        if states is not None:
            states.append(state)
    return history


def masks_of(result):
    """The masks of a rule's update, which may also say what was kept."""
    return result.masks if isinstance(result, Change) else result


def check_updates(name, rule, share_at):
    """The rule's updates are those of the naive loop called `name`, at many seeds and steps."""
    init, update = jax.jit(rule.init), jax.jit(rule.update)

    @given(st.integers(0, 10_000), st.sampled_from([2, 4, 8, END]))
    @settings(max_examples=25)
    def agrees(seed, step):
        params, grads = random_layers(seed)
        key = jax.random.key(seed)
        masks = init(key, params)
        plain = {path: np.asarray(masks[path]) for path in SHAPES}
        share = share_at(step)
        for turn in range(2):
            turn_key = jax.random.fold_in(key, turn)
            masks = masks_of(update(turn_key, jnp.int32(step), masks, params, grads))
            plain = naive_update(name, share, plain, params, grads, turn_key, step)
            for path in SHAPES:
                np.testing.assert_array_equal(masks[path], plain[path], err_msg=path)
        assert isinstance(masks["bias"], optax.MaskedNode)

    agrees()


def check_memory(name):
    """An update of this rule needs less than three times the memory of the parameters."""
    params = {f"layer{i}": jax.ShapeDtypeStruct((400, 500), jnp.float32) for i in range(5)}
    rule = make_rule(name, density=0.1, end_step=1000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    masks = jax.eval_shape(rule.init, key, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(rule.update).lower(key, step, masks, params, params).compile()
    size = 4 * 5 * 400 * 500
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * size


def layers(dtype=jnp.float32):
    """Parameters with two layers of one shape and one of another."""
    rng = np.random.default_rng(0)
    sizes = {"layer0": (6, 5), "layer1": (6, 5), "conv": (3, 3, 2, 4)}
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=size), dtype), "bias": jnp.ones(3, dtype)}
        for name, size in sizes.items()
    }


def step_of(tx):
    """The jitted step `(params, state, grads) -> (params, state)` of an optimizer."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, steps, grads_at=lambda step, params: params, step=None):
    """Parameters and state after so many steps from `sparse_init`."""
    params, state = sparse_init(tx, params)
    step = step or step_of(tx)
    for i in range(steps):
        params, state = step(params, state, grads_at(i, params))
    return params, state
