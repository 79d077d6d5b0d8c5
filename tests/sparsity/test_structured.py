"""N:M masks, SR-STE and channel pruning against naive NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.sparsity import (
    apply_masks,
    channel_masks,
    channels,
    get_masks,
    learn_masks,
    n_m_masks,
    sparsify,
    sr_ste,
    static,
)


def kernel(shape, seed):
    """Weights on a coarse grid, so that there are ties."""
    return np.round(4 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32) / 4


def naive_n_m(w, n, m):
    """Group by group: the n largest |w|, the lowest index first among equals."""
    mask = np.zeros(w.shape, bool)
    for place in np.ndindex(*w.shape[:-2]):
        for out in range(w.shape[-1]):
            for start in range(0, w.shape[-2], m):
                group = range(start, start + m)
                best = sorted(group, key=lambda i: (-abs(w[(*place, i, out)]), i))[:n]
                for i in best:
                    mask[(*place, i, out)] = True
    return mask


def naive_channels(w, count, alive):
    """The `count` output channels of largest norm among those alive."""
    norms = [np.sqrt(sum(x * x for x in w[..., c].ravel())) for c in range(w.shape[-1])]
    order = sorted((c for c in range(len(norms)) if alive[c]), key=lambda c: (-norms[c], c))
    mask = np.zeros(w.shape, bool)
    mask[..., order[:count]] = True
    return mask


jitted_n_m_masks = jax.jit(n_m_masks, static_argnums=(1, 2))


@given(
    st.sampled_from([(2, 4, "float32"), (1, 4, "bfloat16"), (1, 2, "float32"), (5, 8, "float32")]),
    st.sampled_from([(8, 3), (3, 2, 16, 2)]),
    st.integers(0, 1000),
)
@settings(max_examples=40)
def test_n_of_every_m_weights_are_kept(pattern, shape, seed):
    n, m, dtype = pattern
    w = kernel(shape, seed)
    params = {"w": w.astype(jnp.dtype(dtype)), "bias": np.ones(3)}
    masks = jitted_n_m_masks(params, n, m)
    mask = np.asarray(masks["w"])
    groups = mask.reshape(*shape[:-2], shape[-2] // m, m, shape[-1])
    assert (groups.sum(axis=-2) == n).all()
    np.testing.assert_array_equal(mask, naive_n_m(w, n, m))
    assert isinstance(masks["bias"], optax.MaskedNode)


def test_counts_are_exact_among_ties_and_nan():
    mask = n_m_masks({"w": jnp.zeros((8, 2))}, 2, 4)["w"]
    np.testing.assert_array_equal(mask[:, 0], [1, 1, 0, 0, 1, 1, 0, 0])
    column = jnp.array([jnp.nan, 0.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(n_m_masks({"w": column[:, None]}, 2, 4)["w"][:, 0], [0, 1, 0, 1])
    np.testing.assert_array_equal(n_m_masks({"w": column[:, None]}, 3, 4)["w"][:, 0], [1, 1, 0, 1])


def test_n_m_masks_train_as_static_ones():
    params = {"a": {"kernel": jnp.asarray(kernel((8, 4), 0))}, "head": {"kernel": jnp.ones((3, 2))}}
    masks = jax.jit(lambda params: n_m_masks(params, 2, 4, exclude="head/kernel"))(params)
    tx = sparsify(optax.sgd(0.1), static(masks))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    new = optax.apply_updates(params, updates)
    assert not np.asarray(new["a"]["kernel"])[~np.asarray(masks["a"]["kernel"])].any()
    assert isinstance(get_masks(state)["head"]["kernel"], optax.MaskedNode)


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_sr_ste_gradient_is_straight_through_plus_decay_of_the_pruned(decay):
    w, upstream = kernel((3, 3, 8, 2), 0), kernel((3, 3, 8, 2), 1)
    method = sr_ste(2, 4, decay=decay)
    trained = method.init({"w": jnp.asarray(w), "bias": jnp.ones(2)})
    assert trained.keys() == {"weights"}
    mask = naive_n_m(w, 2, 4)
    np.testing.assert_array_equal(method.weights(trained)["w"], w * mask)
    np.testing.assert_array_equal(method.masks(trained)["weights"]["w"], mask)

    @jax.jit
    def gradient(trained):
        grads = jax.grad(lambda trained: jnp.sum(method.weights(trained)["w"] * upstream))(trained)
        return grads, method.regularize(grads, trained)

    plain, full = gradient(trained)
    np.testing.assert_array_equal(plain["weights"]["w"], upstream)
    np.testing.assert_allclose(full["weights"]["w"], upstream + decay * ~mask * w, rtol=1e-6)
    np.testing.assert_array_equal(full["weights"]["bias"], np.zeros(2))


def test_sr_ste_brings_a_pruned_weight_back():
    method = sr_ste(1, 2, decay=0.0)
    trained = method.init({"w": jnp.array([[1.0], [0.9]])})
    tx = learn_masks(optax.sgd(1.0), method)
    state = tx.init(trained)
    grads = {"weights": {"w": jnp.array([[0.5], [-0.5]])}}
    updates, state = tx.update(grads, state, trained)
    trained = optax.apply_updates(trained, updates)
    np.testing.assert_array_equal(get_masks(state)["weights"]["w"], [[False], [True]])
    np.testing.assert_allclose(method.weights(trained)["w"], [[0], [1.4]], rtol=1e-6)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_channel_masks_keep_the_largest_channels(density, dtype):
    params = {"conv": kernel((3, 3, 2, 7), 0), "mid": kernel((6, 10), 1), "head": kernel((4, 3), 2)}
    params = {name: jnp.asarray(w, dtype) for name, w in params.items()} | {"bias": jnp.ones(7)}
    masks = channel_masks(params, density, exclude=["head"])
    for name in ("conv", "mid"):
        w = np.asarray(params[name], np.float32)
        count = max(1, round(density * w.shape[-1]))
        expected = naive_channels(w, count, np.ones(w.shape[-1], bool))
        assert masks[name].dtype == bool
        np.testing.assert_array_equal(masks[name], expected)
        assert expected.any(axis=tuple(range(w.ndim - 1))).sum() == count
    assert isinstance(masks["head"], optax.MaskedNode)
    assert isinstance(masks["bias"], optax.MaskedNode)


def test_channels_follow_the_cubic_schedule_and_never_return():
    params = {"conv": jnp.asarray(kernel((3, 3, 2, 12), 0)), "mid": jnp.asarray(kernel((6, 20), 1))}
    params["head"] = jnp.ones((20, 4))
    rule = channels(0.25, start_step=2, end_step=12, update_every=3, exclude="head")
    tx = sparsify(optax.sgd(1.0), rule)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    alive = {name: np.ones(params[name].shape[-1], bool) for name in ("conv", "mid")}
    compilations = 0

    @jax.jit
    def one(params, state, grads):
        nonlocal compilations
        compilations += 1
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(15):
        grads = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), params)
        before = params
        params, state = one(params, state, grads)
        for name, left in alive.items():
            size = left.size
            if step in (2, 5, 8, 11, 12):
                final = round(0.25 * size)
                target = final + (size - final) * (1 - (step - 2) / 10) ** 3
                w = np.asarray(before[name], np.float64)
                expected = naive_channels(w, round(target), left)
                left &= expected.any(axis=tuple(range(w.ndim - 1)))
            mask = np.asarray(get_masks(state)[name])
            np.testing.assert_array_equal(mask, np.broadcast_to(left, mask.shape), str(step))
            assert not np.asarray(params[name])[~mask].any()
    assert [int(left.sum()) for left in alive.values()] == [3, 5]
    assert compilations == 1
    assert params["head"].all()


def test_at_least_one_channel_stays():
    params = {"w": jnp.asarray(kernel((4, 6), 0))}
    rule = channels(0.01, end_step=4, update_every=1)
    masks = rule.init(jax.random.key(0), params)
    for step in range(1, 5):
        masks = rule.update(jax.random.key(0), jnp.int32(step), masks, params, params)
    np.testing.assert_array_equal(masks["w"], channel_masks(params, 0.01)["w"])
    assert apply_masks(params, masks)["w"].any(axis=0).sum() == 1


PARAMS = {"conv": {"kernel": jnp.ones((3, 3, 3, 8))}, "mid": {"kernel": jnp.ones((8, 4))}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: n_m_masks(PARAMS, 2, 4),
            "conv/kernel has 3 inputs, which m=4 does not divide: .*exclude",
        ),
        (lambda: sr_ste(2, 4).init(PARAMS), "conv/kernel has 3 inputs"),
        (lambda: n_m_masks(PARAMS, 4, 2), "n=4 of every m=2 weights cannot be kept"),
        (lambda: n_m_masks(PARAMS, 4, 4), "n=4 of every m=4 weights cannot be kept"),
        (lambda: sr_ste(0, 4), "n=0 of every m=4 weights cannot be kept"),
        (lambda: sr_ste(1.5, 4), "n=1.5 of every m=4 weights cannot be kept"),
        (lambda: sr_ste(decay=-1.0), "decay=-1.0 is not a number >= 0"),
        (lambda: sr_ste(decay=float("nan")), "decay=nan is not a number >= 0"),
        (lambda: n_m_masks(PARAMS, 2, 4, exclude="cnv/kernel"), "exclude pattern 'cnv/kernel'"),
        (lambda: channel_masks(PARAMS, 0.0), r"density=0.0 is not in \(0, 1\]"),
        (lambda: channel_masks({"bias": jnp.ones(3)}, 0.5), "no parameter is left to prune"),
        (lambda: channels(1.5, end_step=10), "density=1.5 is not in"),
        (lambda: channels(0.5, end_step=0), "end_step=0 does not come after"),
        (lambda: channels(0.5, end_step=9, update_every=0), "update_every=0 is not a number"),
    ],
)
def test_impossible_options_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
