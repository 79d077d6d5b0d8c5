"""The transform that trains a reparametrization, on all three methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from cka_sr_jax.sparsity import (
    Reparametrization,
    density,
    dst,
    get_masks,
    leaf_paths,
    learn_masks,
    mask_metrics,
    soft_threshold,
    sr_ste,
)

METHODS = {
    "str": functools.partial(soft_threshold, initial=-2.0),
    "dst": functools.partial(dst, 1e-2),
    "sr_ste": functools.partial(sr_ste, decay=1e-2),
}


def small_net(dtype=np.float32):
    rng = np.random.default_rng(0)
    net = {
        name: {"kernel": rng.normal(0, 0.4, shape), "bias": np.zeros(shape[-1])}
        for name, shape in (("mid", (8, 16)), ("head", (16, 4)))
    }
    return jax.tree.map(lambda w: jnp.asarray(w, dtype), net)


X = jax.random.normal(jax.random.key(0), (64, 8))


Y = jnp.argmax(X[:, :4] + 0.5 * X[:, 4:], axis=1)


def loss(params):
    def layer(x, name):
        bias = params[name]["bias"]
        return x.astype(bias.dtype) @ params[name]["kernel"] + bias[None]

    logits = layer(jax.nn.relu(layer(X, "mid")), "head").astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def train(tx, method, params, steps):
    """A plain Optax loop, jitted; checks that it compiles once and that masks are current."""
    trained = method.init(params)
    state = tx.init(trained)
    compilations = 0

    @jax.jit
    def step(trained, state):
        nonlocal compilations
        compilations += 1
        grads = jax.grad(lambda trained: loss(method.weights(trained)))(trained)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    for _ in range(steps):
        trained, state = step(trained, state)
    assert compilations == 1
    jax.tree.map(np.testing.assert_array_equal, get_masks(state), jax.jit(method.masks)(trained))
    return trained, state


LEARNERS = {
    "str": (
        optax.chain(optax.add_decayed_weights(8e-3), optax.sgd(0.3, momentum=0.9)),
        soft_threshold(),
    ),
    "dst": (optax.sgd(0.2, momentum=0.9), dst(3e-3)),
    "sr_ste": (optax.sgd(0.1, momentum=0.9), sr_ste(1, 4)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_training_makes_weights_sparse_while_the_loss_falls(name):
    inner, method = LEARNERS[name]
    trained, state = train(learn_masks(inner, method), method, small_net(), steps=200)
    assert 0.05 < density(get_masks(state)) < 0.75
    assert mask_metrics(state).keys() == {"density"}
    assert loss(method.weights(trained)) < 0.4 * loss(small_net())


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("method", METHODS)
def test_frozen_dict_of_bfloat16(method):
    method = METHODS[method]()
    params = FrozenDict(small_net(jnp.bfloat16))
    trained, _ = train(learn_masks(optax.adam(1e-2), method), method, params, steps=3)
    weights = jax.jit(method.weights)(trained)
    assert isinstance(weights, FrozenDict)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    assert all(np.isfinite(np.asarray(w, np.float32)).all() for w in jax.tree.leaves(trained))
    for t in jax.tree.leaves(trained.get("thresholds", {})):
        assert t.dtype == jnp.float32  # bfloat16 would lose small updates


@pytest.mark.parametrize("method", METHODS)
def test_nnx_state(method):
    graph, params = nnx.split(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    method = METHODS[method]()
    trained = method.init(params)
    tx = learn_masks(optax.sgd(0.1), method)

    def nnx_loss(trained):
        logits = nnx.merge(graph, method.weights(trained))(X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    @jax.jit
    def step(trained, state):
        updates, state = tx.update(jax.grad(nnx_loss)(trained), state, trained)
        return optax.apply_updates(trained, updates), state

    trained, state = step(trained, tx.init(trained))
    assert [path for path, _ in leaf_paths(get_masks(state))] == ["weights/kernel"]
    assert np.isfinite(nnx_loss(trained))


@pytest.mark.usefixtures("standard_promotion")
def test_without_its_own_term_or_restart_a_method_is_the_inner_optimizer():
    method = Reparametrization(
        init=lambda params: {"weights": params},
        weights=lambda trained: trained["weights"],
        masks=lambda trained: jax.tree.map(lambda _: optax.MaskedNode(), trained),
    )
    params = method.init(small_net())
    grads = jax.grad(lambda trained: loss(method.weights(trained)))(params)
    tx, inner = learn_masks(optax.adamw(1e-2), method), optax.adamw(1e-2)
    actual, state = tx.update(grads, tx.init(params), params)
    expected, _ = inner.update(grads, inner.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert density(get_masks(state)) == 1
    assert state.step == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: soft_threshold(initial=float("nan")),
            ValueError,
            "initial=nan is not a finite number",
        ),
        (lambda: dst(-1.0), ValueError, "alpha=-1.0 is not a number >= 0"),
        (lambda: dst(float("inf")), ValueError, "alpha=inf is not a number >= 0"),
        (
            lambda: soft_threshold(exclude="heat").init(small_net()),
            ValueError,
            "exclude pattern 'heat'",
        ),
        (lambda: learn_masks(optax.sgd(0.1), dst), TypeError, "is not a Reparametrization"),
        (
            lambda: learn_masks(optax.sgd(0.1), dst(0.1)).init(small_net()),
            ValueError,
            "the trained tree has no 'thresholds': make it with",
        ),
        (lambda: sr_ste().weights(small_net()), ValueError, "the trained tree has no 'weights'"),
        (
            lambda: learn_masks(optax.sgd(0.1), dst(0.1)).update({}, ()),
            ValueError,
            "learn_masks needs the trained tree",
        ),
    ],
)
def test_misuse_is_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
