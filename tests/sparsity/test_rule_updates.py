"""Each rule's update against a naive NumPy loop, schedules, and what rules refuse."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.sparsity import (
    apply_masks,
    churn,
    constant,
    cosine,
    cubic_counts,
    density,
    explored,
    get_masks,
    layer_counts,
    leaf_paths,
    linear,
    magnitude_and_gradient,
    make_rule,
    mask_metrics,
    rigl,
    sparse_evolutionary,
    sparsify,
)
from cka_sr_jax.sparsity.masks import fold_in_path
from cka_sr_jax.sparsity.schedules import periodic

SHAPES = {"a": (6, 5), "b": (3, 3, 2, 4), "c": (9, 3)}
END = 10


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


COMMON = {"density": 0.3, "end_step": END, "update_every": 2}
RULES = {
    "set": ("set", {}),
    "rigl": ("rigl", {"schedule": "linear", "drop_fraction": 0.6}),
    "snfs": ("snfs", {"schedule": "constant"}),
    "mest": ("mest", {"gradient_weight": 0.5}),
    "mest_soft": ("mest", {"soft": True}),
    "gmp": ("gmp", {}),
    "gmp_erk": ("gmp", {"distribution": "erk"}),
    "granet": ("granet", {"initial_density": 0.6}),
    "granet_dense": ("granet", {"initial_density": 1.0}),
}
SHARES = {
    "rigl": linear(0.6, END),
    "snfs": constant(0.3),
    "granet": cosine(0.5, END, 0.005),
    "granet_dense": cosine(0.5, END, 0.005),
}


@pytest.mark.parametrize("name", RULES)
def test_updates_are_those_of_a_naive_loop(name):
    rule_name, options = RULES[name]
    rule = make_rule(rule_name, **COMMON, **options)
    init, update = jax.jit(rule.init), jax.jit(rule.update)

    @given(st.integers(0, 10_000), st.sampled_from([2, 4, 8, END]))
    @settings(max_examples=25)
    def agrees(seed, step):
        params, grads = random_layers(seed)
        key = jax.random.key(seed)
        masks = init(key, params)
        plain = {path: np.asarray(masks[path]) for path in SHAPES}
        share = SHARES.get(name, cosine(0.3, END))(step)
        for turn in range(2):
            turn_key = jax.random.fold_in(key, turn)
            masks = update(turn_key, jnp.int32(step), masks, params, grads)
            plain = naive_update(name, share, plain, params, grads, turn_key, step)
            for path in SHAPES:
                np.testing.assert_array_equal(masks[path], plain[path], err_msg=path)
        assert isinstance(masks["bias"], optax.MaskedNode)

    agrees()


def run(rule, steps, grads_at=lambda step, params: params, states=None):
    """Masks after each update of a training without a model; `states` collects the states."""
    params = {k: jnp.asarray(v) for k, v in random_layers(0)[0].items()}
    tx = sparsify(optax.sgd(0.01), rule)
    state = tx.init(params)
    params = apply_masks(params, get_masks(state))
    history = [get_masks(state)]

    @jax.jit
    def one(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = one(params, state, grads_at(step, params))
        history.append(get_masks(state))
        if states is not None:
            states.append(state)
    return history


@pytest.mark.parametrize(
    ("rule", "initial"),
    [
        (make_rule("gmp", density=0.1, start_step=3, end_step=20, update_every=4), 1.0),
        (make_rule("granet", density=0.1, start_step=3, end_step=20, update_every=4), 0.5),
        (
            make_rule(
                "granet",
                density=0.1,
                start_step=3,
                end_step=30,
                prune_end_step=20,
                update_every=4,
                initial_density=1.0,
            ),
            1.0,
        ),
    ],
)
def test_density_follows_the_cubic_schedule(rule, initial):
    history = [float(density(masks)) for masks in run(rule, 32)]
    size = sum(np.prod(shape) for shape in SHAPES.values())
    start = history[0]
    assert abs(start - initial) <= 3 / size  # each layer rounds its own count
    expected = start
    for step, actual in enumerate(history[1:]):
        if step in (3, 7, 11, 15, 19, 20):
            expected = 0.1 + (start - 0.1) * (1 - (step - 3) / 17) ** 3
        assert abs(actual - expected) <= 1 / size, step
    assert round(history[-1] * size) == round(0.1 * size)


def test_masks_freeze_after_end_step():
    history = run(
        make_rule("set", density=0.3, end_step=6, update_every=2, schedule="constant"), 12
    )
    changed = [float(churn(a, b)) > 0 for a, b in itertools.pairwise(history)]
    assert [step for step, moved in enumerate(changed) if moved] == [2, 4, 6]


def test_snfs_grows_by_the_average_of_dense_gradients():
    """One large early gradient outlives a small recent one in the average, not in RigL."""
    params = {"w": jnp.array([[3.0, 2.0, 1.0, 0.0, 0.0]])}
    masks = {"w": jnp.array([[True, True, True, False, False]])}
    grads = [jnp.array([[0, 0, 0, 5.0, 0]]), jnp.array([[0, 0, 0, 0, 0.1]])]
    options = dict(density=0.6, end_step=9, update_every=1, drop_fraction=constant(0.4))
    for name, expected in (("snfs", [1, 1, 0, 1, 0]), ("rigl", [1, 1, 0, 0, 1])):
        tx = sparsify(optax.sgd(0.0), make_rule(name, **options))
        state = tx.init(params)._replace(masks=masks)
        for grad in grads:
            _, state = tx.update({"w": grad}, state, params)
        assert state.masks["w"].astype(int).tolist() == [expected]


def test_scores_may_be_plain_functions():
    def first(key, mask, param, grad):
        return -jnp.arange(param.size, dtype=jnp.float32).reshape(param.shape)

    half = constant(0.5)
    rule = rigl(
        0.3, "uniform", end_step=10, update_every=2, drop_fraction=half, drop=first, grow=first
    )
    params, grads = random_layers(0)
    masks = rule.init(jax.random.key(0), params)
    masks = rule.update(jax.random.key(1), jnp.int32(2), masks, params, grads)
    # The lowest-indexed half stays and the lowest-indexed free places are filled.
    flat = np.asarray(masks["a"]).ravel()
    assert flat.sum() == 9
    assert flat[:4].all()
    both = sparse_evolutionary(
        0.3, end_step=10, update_every=2, drop=magnitude_and_gradient(0.5), grow="sensitivity"
    )
    masks = both.update(jax.random.key(1), jnp.int32(2), masks, params, grads)
    assert int(masks["a"].sum()) == 9


@pytest.mark.parametrize("name", ["rigl", "gmp", "granet"])
def test_a_score_has_one_value_for_each_weight(name):
    """One for each channel would be broadcast, and the counts would be wrong without a word."""
    params, grads = random_layers(0)
    rule = make_rule(
        name, density=0.3, end_step=900, drop=lambda key, mask, w, grad: jnp.abs(w).sum(0)[None]
    )
    masks = rule.init(jax.random.key(0), params)
    with pytest.raises(ValueError, match=r"a score of shape .* does not rank the weights"):
        rule.update(jax.random.key(1), jnp.int32(2), masks, params, grads)


def test_exploration_and_churn():
    a = {"w": jnp.array([True, True, False, False]), "b": optax.MaskedNode()}
    b = {"w": jnp.array([True, False, True, False]), "b": optax.MaskedNode()}
    assert churn(a, b) == 0.5
    assert churn(a, a) == 0
    assert density(explored(a, b)) == 0.75
    assert isinstance(explored(a, b)["b"], optax.MaskedNode)
    dense = {"b": optax.MaskedNode()}
    assert churn(dense, dense) == 0
    history = run(make_rule("set", **COMMON), END + 1)
    union = history[0]
    for masks in history:
        union = explored(union, masks)
    assert density(history[0]) < density(union) < 1


def test_mask_metrics_are_those_of_the_history():
    for name in ("set", "gmp"):
        states = []
        history = run(make_rule(name, **COMMON), END + 2, states=states)
        union = history[0]
        for before, masks, state in zip(history, history[1:], states, strict=False):
            union = explored(union, masks)
            metrics = mask_metrics(state)
            assert metrics["density"] == density(masks)
            assert metrics["explored"] == density(union)
            if churn(before, masks) > 0:
                assert metrics["churn"] == churn(before, masks)
    params = {"w": jnp.ones((3, 4))}
    assert mask_metrics(sparsify(optax.sgd(0.1), make_rule("rst", density=0.5)).init(params)) == {
        "density": 0.5
    }


def test_schedules_between_their_ends():
    """cos(pi / 4), computed by hand."""
    np.testing.assert_allclose(cosine(0.4, 100, 0.1)(25), 0.1 + 0.15 * (1 + 0.70710678), rtol=1e-6)
    np.testing.assert_allclose(linear(0.4, 100, 0.1)(25), 0.325, rtol=1e-6)


def test_scores_may_be_infinite():
    """What a score says outside the mask does not count, -inf or not."""

    def masked_magnitude(key, mask, param, grad):
        return jnp.where(mask, jnp.abs(param), -jnp.inf)

    params, grads = random_layers(3)
    update = {}
    for name, drop in (("plain", "magnitude"), ("infinite", masked_magnitude)):
        rule = make_rule("gmp", density=0.2, end_step=10, update_every=2, drop=drop)
        masks = jax.tree.map(lambda m: m.ravel().at[0].set(False).reshape(m.shape),
                             rule.init(jax.random.key(0), params))  # fmt: skip
        update[name] = rule.update(jax.random.key(1), jnp.int32(6), masks, params, grads)
    jax.tree.map(np.testing.assert_array_equal, update["plain"], update["infinite"])


def test_schedules_at_their_ends():
    for schedule in (cosine(0.4, 100, 0.1), linear(0.4, 100, 0.1)):
        np.testing.assert_allclose([schedule(t) for t in (0, 50, 100, 150)], [0.4, 0.25, 0.1, 0.1])
    assert constant(0.25)(7) == 0.25
    due = periodic(4, 14, start_step=2, also=13)
    assert [t for t in range(20) if due(t)] == [2, 6, 10, 13, 14]
    assert [t for t in range(20) if periodic(4, 8)(t)] == [4, 8]


def test_counts_of_gradual_pruning():
    """By hand: of 1000 weights 100 are left; at a quarter of the way (3/4)^3 of the rest are."""
    count = cubic_counts(1000, 100, start_step=10, end_step=30, update_every=5)
    steps = {0: 1000, 10: 1000, 15: 480, 20: 212, 25: 114, 30: 100, 99: 100}
    assert {step: int(count(step)) for step in steps} == steps
    assert int(count(17)) == 480  # between updates, that of the last one
    # An end that is no multiple of the period, and counts that float32 does not hold.
    count = cubic_counts(100_000_001, 50_000_001, start_step=0, end_step=7, update_every=3)
    expected = {t: 50_000_001 + round(50_000_000 * ((7 - t) / 7) ** 3) for t in (3, 6, 7)}
    assert {step: int(jax.jit(count)(step)) for step in expected} == expected
    # One shot.
    count = cubic_counts(1000, 100, start_step=4, end_step=4, update_every=100)
    assert [int(count(step)) for step in (0, 3, 4, 5)] == [1000, 1000, 100, 100]


def test_one_shot_pruning_is_gmp_at_one_step():
    rule = make_rule("gmp", density=0.2, start_step=3, end_step=3)
    history = run(rule, 6)
    sizes = [sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) for masks in history]
    whole = sum(math.prod(shape) for shape in SHAPES.values())
    assert sizes == [whole] * 4 + [round(0.2 * whole)] * 3


@given(st.sampled_from(["rigl", "mest"]), st.floats(-3, 3))
@settings(max_examples=6)  # each compiles
def test_a_drop_fraction_of_the_users_own_may_be_anything(name, value):
    params, grads = random_layers(1)
    options = {"soft": True} if name == "mest" else {}
    rule = make_rule(name, density=0.3, end_step=900, drop_fraction=lambda step: value, **options)
    masks = rule.init(jax.random.key(0), params)
    after = rule.update(jax.random.key(1), jnp.int32(4), masks, params, grads)
    counts = dict(leaf_paths(after))
    for path, mask in leaf_paths(masks):
        if name == "rigl":
            assert counts[path].sum() == mask.sum()
        assert 0 < counts[path].sum() <= mask.size


GOOD = {"density": 0.1, "end_step": 100}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rigl", {"update_every": 0}, "update_every=0 is not a number of steps"),
        ("rigl", {"end_step": 0}, "end_step=0 "),
        ("rigl", {"update_every": 101}, "update_every=101 is more than the 100 steps from"),
        ("mest", {"gradient_weight": -1.0}, "gradient_weight=-1.0 is not a number of 0 or more"),
        ("snip", {}, r"'snip' is no rule: write static\(snip\("),
        ("set", {"drop_fraction": 0.0}, r"drop_fraction=0.0 is not in \(0, 1\)"),
        ("set", {"drop_fraction": 1.0}, r"drop_fraction=1.0 is not in \(0, 1\)"),
        ("set", {"schedule": "cosin"}, "Unknown drop-fraction schedule 'cosin': did you mean"),
        ("set", {"grow": "randon"}, "Unknown score 'randon': did you mean 'random'?"),
        ("rigl", {"density": 0.0}, r"density=0.0 is not in \(0, 1\]"),
        ("snfs", {"momentum": 1.0}, r"momentum=1.0 is not in \(0, 1\)"),
        (
            "snfs",
            {"grow": "random"},
            "Sparsity rule 'snfs' has no option 'grow', which granet, mest, rigl, set",
        ),
        ("rst", {}, "Sparsity rule 'rst' has no option 'end_step', which channels, gmp"),
        ("rigl", {"update_every": 2.5}, "update_every=2.5 is not a number of steps: pass a whole"),
        ("gmp", {"end_step": float("nan")}, "end_step=nan is not a number of steps"),
        ("gmp", {"start_step": 101}, "end_step=100 does not come after start_step=101"),
        ("gmp", {"end_step": 0}, "end_step=0 does not come after start_step=0"),
        ("set", {"density": "0.1"}, r"density='0.1' is not in \(0, 1\]"),
        ("gmp", {"start_step": -1}, "start_step=-1 is negative"),
        ("gmp", {"density": 1.5}, "density=1.5 is not in"),
        (
            "set",
            {"final_drop_fraction": 0.4},
            r"final_drop_fraction=0.4 is not in \[0, 0.3\]",
        ),
        ("granet", {"initial_density": 0.05}, "initial_density=0.05 is below density=0.1"),
        ("granet", {"prune_end_step": 200}, "prune_end_step=200 comes after end_step=100"),
        ("granet", {"start_step": 150}, "does not come after start_step=150"),
    ],
)
def test_impossible_options_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_rule(name, **(GOOD | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [lambda: cosine(0.3, 0), lambda: linear(0.3, 10, floor=0.4), lambda: periodic(1, 4, 5)],
)
def test_impossible_schedules(call):
    with pytest.raises(ValueError, match=r"end_step|final_drop_fraction"):
        call()


def test_an_unknown_distribution_is_named_at_init():
    params, _ = random_layers(0)
    for name in ("gmp", "granet", "rigl"):
        with pytest.raises(ValueError, match="Unknown distribution 'ekr'"):
            make_rule(name, **GOOD, distribution="ekr").init(jax.random.key(0), params)


@pytest.mark.parametrize("name", ["rigl", "gmp", "granet", "mest"])
def test_an_update_needs_less_than_three_times_the_memory_of_the_parameters(name):
    params = {f"layer{i}": jax.ShapeDtypeStruct((400, 500), jnp.float32) for i in range(5)}
    rule = make_rule(name, density=0.1, end_step=1000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    masks = jax.eval_shape(rule.init, key, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(rule.update).lower(key, step, masks, params, params).compile()
    size = 4 * 5 * 400 * 500
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * size
