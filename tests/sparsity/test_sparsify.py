"""What `sparsify` keeps in its state; tests/sparsity/test_contract.py has what it does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    SparseState,
    dst,
    get_masks,
    granet,
    leaf_paths,
    learn_masks,
    make_rule,
    mest,
    rigl,
    rst,
    selection,
    soft_threshold,
    sparse_init,
    sparsify,
    sr_ste,
    synflow,
)
from tests.sparsity.naive import COMMON, END, RULES, layers, step_of, train
from tests.speeds import fast_among


@pytest.mark.parametrize(
    ("made_with", "used_with"),
    [
        (make_rule("dense"), rst(0.2)),
        (rst(0.2), make_rule("rigl", density=0.2, end_step=9, update_every=2)),
        (make_rule("rigl", density=0.2, end_step=9, update_every=2), rst(0.2)),
        (make_rule("set", density=0.2, end_step=900), make_rule("snfs", density=0.2, end_step=900)),
    ],
)
def test_a_state_of_another_rule_is_no_dense_run(made_with, used_with):
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    state = sparsify(optax.sgd(0.1), made_with).init(params)
    with pytest.raises(ValueError, match=r"not one of this sparsify: make it with tx.init"):
        sparsify(optax.sgd(0.1), used_with).update(params, state, params)


def test_a_state_of_no_rule_or_of_other_parameters():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    tx = sparsify(optax.sgd(0.1), rst(0.2))
    with pytest.raises(ValueError, match="not one of this sparsify"):
        tx.update(params, optax.sgd(0.1).init(params), params)
    other = tx.init({"w": jnp.ones((1, 5)), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mask of w has shape \(1, 5\)"):
        tx.update(params, other, params)


@pytest.mark.usefixtures("enable_x64")
@pytest.mark.parametrize("name", fast_among(RULES, "rst", "rigl", "granet", "gmp"))
def test_every_rule_works_where_float64_is_enabled(name):
    dtype = "float32" if name in ("rigl", "gmp", "rst") else "float64"
    tx = sparsify(optax.sgd(0.1, momentum=0.9), make_rule(name.split()[0], **RULES[name]))
    params, state = train(tx, layers(dtype), 4)
    for path, mask in leaf_paths(get_masks(state)):
        weight = dict(leaf_paths(params))[path]
        assert weight.dtype == dtype
        assert not weight[~mask].any()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}


@pytest.mark.parametrize("name", [name for name in RULES if name != "rst"])
def test_a_change_waits_until_gradients_are_finite(name):
    tx = sparsify(optax.sgd(0.0), make_rule(name.split()[0], **RULES[name]))
    step, params = step_of(tx), layers()
    bad = np.inf if name in ("set", "gmp") else np.nan
    poisoned = {
        **params,
        "layer1": {**params["layer1"], "kernel": params["layer1"]["kernel"] + bad},
    }

    def masks_after(steps, bad_steps):
        grads = lambda i, _: poisoned if i in bad_steps else params  # noqa: E731
        _, state = train(tx, params, steps, grads, step)
        return dict(leaf_paths(get_masks(state)))

    def same(one, other):
        return all((one[path] == other[path]).all() for path in one)

    start, early = masks_after(1, ()), masks_after(3, ())  # the first change is at step 2
    assert not same(start, early)
    assert same(masks_after(4, (2, 3)), start)
    assert not same(masks_after(5, (2, 3)), start)  # it comes as soon as it can
    # Also the last change, after which none is due.
    final = masks_after(END + 3, (END, END + 1))
    counts = {path: int(mask.sum()) for path, mask in final.items()}
    other = masks_after(END + 3, ())
    assert sum(counts.values()) == sum(int(mask.sum()) for mask in other.values())


@pytest.mark.parametrize("name", fast_among(RULES, "rigl", "snfs", "granet"))
def test_a_program_that_may_not_change_masks_is_the_same_between_changes(name):
    tx = sparsify(optax.sgd(0.1, momentum=0.9), make_rule(name.split()[0], **RULES[name]))
    update = jax.jit(tx.update, static_argnames="may_change")
    start = sparse_init(tx, layers())

    def after(steps, may_change):
        params, state = start
        for step in range(steps):
            updates, state = update(params, state, params, may_change=may_change(step))
            params = optax.apply_updates(params, updates)
        return params, state

    due = {2, 4, 6, 8, 10}
    for one, other in zip(
        jax.tree.leaves(after(9, lambda step: True)),
        jax.tree.leaves(after(9, lambda step: step in due)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    first = leaf_paths(get_masks(start[1]))
    for (_, mask), (_, other) in zip(
        first, leaf_paths(get_masks(after(9, lambda step: False)[1])), strict=True
    ):
        np.testing.assert_array_equal(mask, other)


def test_a_change_that_waits_is_made_where_masks_may_change_again():
    tx = sparsify(optax.sgd(0.0), make_rule("rigl", **COMMON))
    params, state = sparse_init(tx, layers())
    update = jax.jit(tx.update, static_argnames="may_change")
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    for step in range(3):  # due at step 2
        _, state = update(bad if step == 2 else params, state, params)
    assert state.pending
    before = get_masks(state)
    _, state = update(params, state, params, may_change=False)
    assert state.pending
    jax.tree.map(np.testing.assert_array_equal, get_masks(state), before)
    _, state = update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not state.pending
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), get_masks(state), before)))


def test_whether_masks_may_change_is_known_when_the_program_is_made():
    tx = sparsify(optax.sgd(0.1), make_rule("rigl", **COMMON))
    params, state = sparse_init(tx, layers())
    with pytest.raises(TypeError, match=r"may_change=.* is not a Python bool: .* static_argnames"):
        jax.jit(tx.update)(params, state, params, may_change=True)


def test_the_average_of_snfs_outlives_a_gradient_that_is_not_finite():
    rule = make_rule("snfs", **COMMON)
    tx = sparsify(optax.sgd(0.0), rule)
    bad = jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(jnp.nan), layers())
    _, state = train(tx, layers(), 4, lambda i, _: bad if i == 1 else layers())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.gradient_average))


@pytest.mark.parametrize("rule", [granet, mest])
def test_a_weight_that_was_cut_starts_anew_when_it_grows_at_once(rule):
    options = {"initial_density": 1.0} if rule is granet else {"grow": "gradient", "start": None}
    if rule is mest:
        options["start"] = {"w": jnp.ones((4, 1), bool)}
    made = rule(0.5, end_step=2, update_every=1, drop_fraction=0.5, schedule="constant", **options)
    tx = sparsify(optax.sgd(0.0, momentum=0.9), made)
    params = {"w": jnp.array([[4.0], [3.0], [2.0], [0.1]])}
    grads = {"w": jnp.array([[0.0], [0.0], [0.0], [9.0]])}
    params, state = train(tx, params, 2, lambda *_: grads)
    assert get_masks(state)["w"][3]
    assert params["w"][3] == 0
    assert state.inner_state[0].trace["w"][3] == 0


def test_rigl_keeps_the_value_of_a_weight_that_is_dropped_and_grown_at_once():
    rule = rigl(
        0.5, end_step=4, update_every=1, drop_fraction=0.5, schedule="constant",
        start={"w": jnp.array([[True], [False], [False], [True]])},
    )  # fmt: skip
    params = {"w": jnp.array([[4.0], [3.0], [2.0], [0.1]])}
    grads = {"w": jnp.array([[0.0], [0.0], [0.0], [9.0]])}
    params, state = train(sparsify(optax.sgd(0.0), rule), params, 2, lambda *_: grads)
    assert get_masks(state)["w"].ravel().tolist() == [True, False, False, True]
    np.testing.assert_allclose(params["w"][3], 0.1)


@pytest.mark.parametrize("name", [name for name in RULES if name != "rst"])
def test_rules_start_from_masks_that_are_given(name):
    params = layers()
    start = {"layer0": {"kernel": params["layer0"]["kernel"] > 0}}  # the others stay dense
    rule = make_rule(name.split()[0], **RULES[name], start=start)
    tx = sparsify(optax.sgd(0.1), rule)
    state = tx.init(params)
    masks = dict(leaf_paths(get_masks(state)))
    assert masks.keys() == {"layer0/kernel"}
    np.testing.assert_array_equal(masks["layer0/kernel"], start["layer0"]["kernel"])
    _, state = train(tx, params, END + 1)
    count = int(get_masks(state)["layer0"]["kernel"].sum())
    kept = int(start["layer0"]["kernel"].sum())
    assert count == kept if name in ("set", "rigl", "snfs", "mest") else 0 < count < kept
    wrong = make_rule(name.split()[0], **RULES[name], start={"bias": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="the masks prune bias, which the rule keeps dense"):
        wrong.init(jax.random.key(0), {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)})


def test_a_rule_goes_on_at_its_own_density_from_another_rules_state():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(20, 20)), jnp.float32)}
    sparse, dense = (
        sparsify(optax.sgd(0.1), make_rule("rigl", density=d, end_step=9, update_every=2))
        for d in (0.1, 0.5)
    )
    params, state = sparse_init(sparse, params)
    step = step_of(dense)
    for _ in range(4):
        params, state = step(params, state, jax.tree.map(jnp.ones_like, params))
    assert int(get_masks(state)["w"].sum()) == 200


@pytest.mark.parametrize("name", ["rst", "rigl", "mest", "granet", "gmp erk"])
def test_counts_beyond_int32_are_exact(name, monkeypatch):
    """With the limit at 20 the small layers below take the way of those beyond 2^31 weights."""
    found = []
    for limit in (selection.LARGEST_INT32, 20):
        monkeypatch.setattr(selection, "LARGEST_INT32", limit)
        tx = sparsify(optax.sgd(0.1), make_rule(name.split()[0], **RULES[name]))
        _, state = train(tx, layers(), 4)
        found.append(dict(leaf_paths(get_masks(state))))
    for path, mask in found[0].items():
        np.testing.assert_array_equal(mask, found[1][path], err_msg=path)


def test_pruners_and_thresholds_count_beyond_int32(monkeypatch):
    params = layers()

    def outputs(params, inputs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * jnp.sum(inputs)

    method = dst(1e-2)
    found = []
    for limit in (selection.LARGEST_INT32, 20):
        monkeypatch.setattr(selection, "LARGEST_INT32", limit)
        masks = synflow(outputs, params, jnp.ones((1, 2)), density=0.3, rounds=3)
        trained = method.init(params)
        trained = {**trained, "thresholds": jax.tree.map(lambda t: t + 99, trained["thresholds"])}
        found.append((dict(leaf_paths(masks)), dict(leaf_paths(method.restart(trained)))))
    for one, other in zip(*found, strict=True):
        for path, array in one.items():
            np.testing.assert_array_equal(array, other[path], err_msg=path)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(method.restart(trained)["thresholds"]))


@pytest.mark.parametrize("name", ["str", "dst", "sr_ste"])
def test_methods_that_learn_masks_plan_leaves_beyond_int32(name):
    big = {"head": {"kernel": jax.ShapeDtypeStruct((8192, 300_000), jnp.bfloat16)}}
    method = {
        "str": lambda: soft_threshold(),
        "dst": lambda: dst(1e-5),
        "sr_ste": lambda: sr_ste(2, 4),
    }
    method = method[name]()
    tx = learn_masks(optax.sgd(0.1), method)
    trained = jax.eval_shape(method.init, big)
    state = jax.eval_shape(tx.init, trained)
    _, after = jax.eval_shape(tx.update, trained, state, trained)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", RULES)
def test_eight_billion_weights_and_leaves_beyond_int32_can_be_planned(name):
    big = {
        "blocks": {"kernel": jax.ShapeDtypeStruct((80, 8192, 28672), jnp.bfloat16)},
        "head": {"kernel": jax.ShapeDtypeStruct((8192, 128256), jnp.bfloat16)},
        # One shape and role: they share a compiled search, with 64-bit counts.
        "table0": {"kernel": jax.ShapeDtypeStruct((8192, 300_000), jnp.bfloat16)},
        "table1": {"kernel": jax.ShapeDtypeStruct((8192, 300_000), jnp.bfloat16)},
    }
    for stacked in ({"blocks": 1}, None):
        rule = make_rule(name.split()[0], **RULES[name], stacked=stacked)
        tx = sparsify(optax.sgd(0.1, momentum=0.9), rule)
        state = jax.eval_shape(tx.init, big)
        updates, after = jax.eval_shape(tx.update, big, state, big)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, big)
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_runs_that_train_together_change_masks_only_when_it_is_due():
    """Under vmap a cond with a predicate of each run would compute both branches at every step."""
    tx = sparsify(optax.sgd(0.1), make_rule("rigl", **COMMON))
    runs = jax.vmap(lambda scale: jax.tree.map(lambda p: p * scale, layers()))(jnp.arange(1.0, 4))
    state = jax.vmap(tx.init)(runs)
    axes = SparseState(None, *(0,) * (len(state) - 1))
    state = state._replace(step=state.step[0])
    update = jax.vmap(tx.update, in_axes=(0, axes, 0), out_axes=(0, axes))
    jaxpr = jax.make_jaxpr(update)(runs, state, runs)
    outer = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert [eqn.invars[0].aval.shape for eqn in outer] == [()]
    step = jax.jit(update)
    together = runs
    for _ in range(4):
        updates, state = step(together, state, together)
        together = optax.apply_updates(together, updates)
    for i in range(3):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], runs)
        alone, own = train_from(tx, alone, 4)
        for path, mask in leaf_paths(get_masks(own)):
            masks = dict(leaf_paths(get_masks(state)))
            np.testing.assert_array_equal(masks[path][i], mask, err_msg=path)


def train_from(tx, params, steps):
    """As `train`, from parameters that are not masked."""
    state, step = tx.init(params), step_of(tx)
    for _ in range(steps):
        params, state = step(params, state, params)
    return params, state


@pytest.mark.parametrize("explored", [True, False])
def test_a_state_of_another_kind_of_exploration_is_refused(explored):
    rule = make_rule("rigl", **COMMON)
    state = sparsify(optax.sgd(0.1), rule, track_explored=explored).init(layers())
    with pytest.raises(ValueError, match="not one of this sparsify"):
        sparsify(optax.sgd(0.1), rule, track_explored=not explored).update(
            layers(), state, layers()
        )
