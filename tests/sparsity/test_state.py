"""What can be read from the state, and `sparse_init`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import (
    apply_masks,
    churn,
    density,
    dst,
    explored,
    get_masks,
    leaf_paths,
    learn_masks,
    make_rule,
    mask_metrics,
    rst,
    sparse_init,
    sparsify,
)
from tests.sparsity.naive import COMMON, END, layers, run, train


def test_mask_metrics_are_those_of_the_history():
    metrics_of = jax.jit(mask_metrics)
    for name in ("set", "gmp"):
        states = []
        history = run(make_rule(name, **COMMON), END + 2, states=states)
        union = history[0]
        for before, masks, state in zip(history, history[1:], states, strict=False):
            union = explored(union, masks)
            metrics = metrics_of(state)
            np.testing.assert_allclose(metrics["density"], density(masks), rtol=1e-6)
            np.testing.assert_allclose(metrics["explored"], density(union), rtol=1e-6)
            if churn(before, masks) > 0:
                np.testing.assert_allclose(metrics["churn"], churn(before, masks), rtol=1e-6)
    params = {"w": jnp.ones((3, 4))}
    assert mask_metrics(sparsify(optax.sgd(0.1), make_rule("rst", density=0.5)).init(params)) == {
        "density": 0.5
    }


def test_exploration_is_counted_where_it_is_asked_for():
    rule = make_rule("rigl", **COMMON)
    params = {"w": jnp.ones((10, 5))}
    with_it, without = (
        sparsify(optax.sgd(0.1), rule, track_explored=flag).init(params) for flag in (True, False)
    )
    assert set(mask_metrics(with_it)) == {"density", "churn", "explored"}
    assert set(mask_metrics(without)) == {"density", "churn"}
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s)[1:]) for s in (with_it, without)]
    assert sizes[0] - sizes[1] == 50


def test_parts_of_one_partition_have_one_tree_of_masks():
    params = layers()
    labels = {"layer0": "a", "layer1": "b", "conv": "b"}
    rules = {"a": rst(0.5, "uniform"), "b": make_rule("rigl", **COMMON)}
    tx = optax.partition(
        {name: sparsify(optax.sgd(0.1), rule) for name, rule in rules.items()}, labels
    )
    params, state = train(tx, params, 4)
    masks = dict(leaf_paths(get_masks(state)))
    assert masks.keys() == {"layer0/kernel", "layer1/kernel", "conv/kernel"}
    assert int(masks["layer0/kernel"].sum()) == 15
    for path, leaf in leaf_paths(params):
        assert path not in masks or not leaf[~masks[path]].any()
    metrics = mask_metrics(state)
    assert set(metrics) == {"density", "churn", "explored"}
    np.testing.assert_allclose(metrics["density"], density(get_masks(state)))


def test_sparse_init_masks_parameters_and_leaves_a_trained_tree_dense():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    masked, state = sparse_init(sparsify(optax.sgd(0.1), rst(0.5)), params)
    expected = apply_masks(params, get_masks(state))
    np.testing.assert_array_equal(masked["w"], expected["w"])
    method = dst(1e-3)
    trained = method.init(params)
    same, _ = sparse_init(learn_masks(optax.sgd(0.1), method), trained)
    assert same is trained


WRONG_ORDER = optax.named_chain(("s", sparsify(optax.sgd(0.1), rst(0.5))), ("t", optax.scale(1.0)))


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.chain(sparsify(optax.scale_by_adam(), rst(0.5)), optax.scale(-1e-3)), "followed by"),
        (
            WRONG_ORDER,
            "followed by another transform",
        ),
        (optax.chain(optax.clip(1.0), WRONG_ORDER), "followed by another transform"),
        (
            optax.MultiSteps(WRONG_ORDER, 2).gradient_transformation(),
            "followed by another transform",
        ),
        (optax.sgd(0.1), "holds 0 sets of masks"),
        (sparsify(sparsify(optax.sgd(0.1), rst(0.5)), rst(0.1)), "holds masks already.*, once"),
        (
            optax.contrib.mechanize(sparsify(optax.sgd(0.1), rst(0.5))),
            r"Mechanic around sparsify scales .* not sparse: put it inside",
        ),
        (
            optax.conditionally_transform(
                sparsify(optax.sgd(0.1), rst(0.5)), lambda step, *_: step > 3
            ),
            "ConditionallyTransform around sparsify",
        ),
        (
            optax.contrib.sam(sparsify(optax.sgd(0.1), rst(0.5)), optax.sgd(0.1)),
            "SAM around sparsify .* leave it out",
        ),
        (
            optax.contrib.schedule_free(sparsify(optax.sgd(0.1), rst(0.5)), 0.1),
            "ScheduleFree around sparsify",
        ),
    ],
)
def test_what_would_not_stay_sparse_is_refused_at_the_start(tx, message):
    with pytest.raises(ValueError, match=message):
        sparse_init(tx, {"w": jnp.ones((4, 5)), "b": jnp.ones(3)})


def test_lookahead_is_no_place_for_masks():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    pair = optax.LookaheadParams(params, params)
    tx = optax.lookahead(sparsify(optax.sgd(0.1), rst(0.5)), sync_period=2, slow_step_size=0.5)
    with pytest.raises(ValueError, match=r"Lookahead around sparsify .* not sparse: leave it out"):
        get_masks(tx.init(pair))


def test_a_named_chain_may_end_with_sparsify():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    chain = optax.named_chain(("c", optax.clip(1.0)), ("s", sparsify(optax.sgd(0.1), rst(0.5))))
    tx = optax.MultiSteps(chain, 2).gradient_transformation()
    masked, _ = sparse_init(tx, params)
    assert int((masked["w"] != 0).sum()) == 10
