"""Merging and its bounds, against a naive forward pass in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cka_sr_jax.layer_sparsity import (
    Affine,
    active_layers,
    apply_chain,
    candidate_layers,
    drop_negative_parts,
    layer_prox,
    merge_layers,
    random_like,
    spectral_norm,
)
from tests.layer_sparsity.chains import (
    conv,
    forward,
    in_float64,
    random_chain,
    relative_error,
)


def check_merged(chain, merged, nonnegative):
    """The depth is that of the fixed point; the layers' count never above the first one."""
    assert len(merged) == 1 + len(active_layers(merged, 0.0, nonnegative))
    assert len(merged) <= 1 + len(active_layers(chain, 0.0, nonnegative))
    again = merge_layers(merged, nonnegative)
    assert all(np.array_equal(a.kernel, b.kernel) for a, b in zip(again, merged, strict=True))


@pytest.mark.parametrize("chains", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_merging_is_exact_on_many_chains(dtype, limit, chains, capsys):
    rng = np.random.default_rng(0)
    worst, drops, canceled = 0.0, 0, 0
    for trial in range(chains):
        sizes = rng.integers(1, 65, size=rng.integers(3, 14))  # depth 2 to 12
        clear = trial % 2 == 0
        chain = random_chain(rng, dtype, sizes, bias=trial % 4 < 2, clear=clear)
        nonnegative = bool(rng.random() < 0.5)
        x = rng.normal(size=(8, sizes[0])).astype(dtype)
        x = abs(x) if nonnegative else x

        merged = merge_layers(chain, nonnegative)

        check_merged(chain, merged, nonnegative)
        count = 1 + len(active_layers(chain, 0.0, nonnegative))
        assert len(merged) == count or not clear
        canceled += count - len(merged)
        drops += len(chain) - len(merged)
        assert all(a.dtype == dtype for layer in merged for a in layer)
        worst = max(worst, relative_error(forward(merged, x), forward(chain, x)))
    with capsys.disabled():
        print(
            f"\n{chains} chains, {np.dtype(dtype)}: largest relative error {worst:.1e}, {drops} "
            f"layers merged, {canceled} of them active before a product canceled their negative "
            "part"
        )
    assert drops > chains
    assert worst < limit


@pytest.mark.parametrize("chains", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_merging_is_exact_on_convolutions(dtype, limit, chains):
    rng = np.random.default_rng(1)
    drops = 0
    for trial in range(chains):
        depth = rng.integers(2, 6)
        taps = rng.integers(1, 4, size=(depth, 2))
        sizes = rng.integers(1, 9, size=depth + 1)
        chain = random_chain(rng, dtype, sizes, taps, bias=trial % 4 < 2, clear=True)
        nonnegative = bool(trial % 3)
        x = rng.normal(size=(2, 13, 12, sizes[0])).astype(dtype)
        x = abs(x) if nonnegative else x
        merged = merge_layers(chain, nonnegative)
        check_merged(chain, merged, nonnegative)
        assert len(merged) == 1 + len(active_layers(chain, 0.0, nonnegative))
        drops += len(chain) - len(merged)
        assert relative_error(forward(merged, x), forward(chain, x)) < limit
    assert drops > 0.8 * chains


@st.composite
def small_chains(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    chain = []
    for shape in itertools.pairwise(sizes):
        low = draw(st.sampled_from([-4.0, 0.0]))
        elements = st.floats(low, 4.0, width=32)
        kernel = draw(hnp.arrays(np.float32, shape, elements=elements))
        chain.append(Affine(kernel, draw(hnp.arrays(np.float32, shape[1:], elements=elements))))
    x = draw(hnp.arrays(np.float32, (3, sizes[0]), elements=st.floats(-4, 4, width=32)))
    return tuple(chain), x, draw(st.booleans())


@given(small_chains())
def test_merging_has_no_counter_example(drawn):
    chain, x, nonnegative = drawn
    x = abs(x) if nonnegative else x
    merged = merge_layers(chain, nonnegative)
    check_merged(chain, merged, nonnegative)
    # Rounding is relative to what is summed up, which may cancel in the output.
    summed = forward([Affine(abs(k), abs(b)) for k, b in in_float64(chain)], abs(x))
    gap = forward(in_float64(merged), x) - forward(in_float64(chain), x)
    assert np.all(abs(gap) <= 1e-5 * summed + 1e-30)


@given(small_chains(), st.floats(0, 20))
def test_the_bound_has_no_counter_example(drawn, tol):
    chain, x, nonnegative = drawn
    x = abs(x) if nonnegative else x
    new, measured = drop_negative_parts(chain, tol, inputs=x, nonnegative_input=nonnegative)
    norm = float(np.linalg.norm(x.astype(np.float64), axis=1).max())
    _, ball = drop_negative_parts(chain, tol, input_norm=norm, nonnegative_input=nonnegative)
    change = forward(in_float64(new), x) - forward(in_float64(chain), x)
    observed = np.linalg.norm(change, axis=1).max()
    assert observed <= measured * (1 + 1e-9) + 1e-12
    assert observed <= ball * (1 + 1e-9) + 1e-12
    assert active_layers(new, 0.0, nonnegative) == active_layers(chain, tol, nonnegative)


def test_the_bound_on_convolutions():
    rng = np.random.default_rng(2)
    for _ in range(10):
        chain = random_chain(rng, np.float64, (2, 4, 3, 4, 2), [(3, 3), (1, 2), (2, 2), (1, 1)])
        x = rng.normal(size=(3, 8, 8, 2))
        new, bound = drop_negative_parts(chain, 1.5, inputs=x)
        change = forward(new, x) - forward(chain, x)
        observed = np.linalg.norm(change.reshape(3, -1), axis=1).max()
        assert observed <= bound * (1 + 1e-9)
    with pytest.raises(ValueError, match="pass some as inputs="):
        drop_negative_parts(chain, 0.1)


def test_spectral_norm_of_a_convolution_is_a_bound():
    rng = np.random.default_rng(3)
    for sign in (1, -1):
        kernel = rng.normal(size=(3, 2, 3, 4))
        kernel = abs(kernel) if sign == 1 else kernel
        basis = np.eye(7 * 6 * 3).reshape(-1, 7, 6, 3)
        matrix = conv(basis, kernel).reshape(len(basis), -1)
        true = np.linalg.norm(matrix, 2)
        assert true <= spectral_norm(kernel) <= 4 * true


def train(chain, tx, x, y, steps):
    def loss(chain, x, y):
        logits = apply_chain(chain, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, key):
        chain, opt_state = carry
        batch = jax.random.randint(key, (64,), 0, len(x))
        updates, opt_state = tx.update(jax.grad(loss)(chain, x[batch], y[batch]), opt_state, chain)
        return (optax.apply_updates(chain, updates), opt_state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((chain, tx.init(chain)))[0][0]


@pytest.mark.parametrize(("hidden", "strength"), [(2, 0.3), (4, 0.1), (6, 0.3)])
def test_the_bound_is_tight_on_trained_networks(hidden, strength, capsys):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    sizes = [64, *[32] * hidden, 10]
    like = [
        Affine(np.zeros(s, np.float32), np.zeros(s[1], np.float32))
        for s in itertools.pairwise(sizes)
    ]
    chain = random_like(like, jax.random.key(0))
    names = [str(j) for j in candidate_layers(chain)]
    tx = optax.chain(optax.sgd(0.01, 0.9), layer_prox(strength, 0.01, names))
    chain = train(chain, tx, jnp.asarray(x), jnp.asarray(y), 1500)
    wide = in_float64([Affine(*map(np.asarray, layer)) for layer in chain])
    assert (forward(wide, x).argmax(1) == y).mean() > 0.9

    norms = [np.linalg.norm(np.minimum(np.concatenate([*k, b]), 0)) for k, b in wide]
    lines = []
    for tol in sorted({norms[j] * 1.001 for j in candidate_layers(chain)} - {0.0}):
        new, bound = drop_negative_parts(wide, tol, inputs=x)
        change = np.linalg.norm(forward(new, x) - forward(wide, x), axis=1)
        _, ball = drop_negative_parts(wide, tol, input_norm=float(np.linalg.norm(x, axis=1).max()))
        lines.append(f"{bound / change.max():.2f} (ball {ball / change.max():.0f})")
        assert change.max() <= bound * (1 + 1e-9)
        assert bound <= ball
        assert bound <= 10 * change.max()
    with capsys.disabled():
        print(f"\n{hidden} hidden layers, strength {strength}: bound / change {', '.join(lines)}")


def test_a_product_may_cancel_the_negative_part_of_an_active_layer():
    one = Affine(np.ones((1, 1)), np.zeros(1))
    wide = Affine(np.ones((1, 2)), np.zeros(2))
    active = Affine(np.array([[1.0], [-0.5]]), np.zeros(1))
    chain = (one, wide, active, one)
    assert active_layers(chain) == (0, 2)
    assert len(merge_layers(chain)) == 2  # 1 * 1 - 0.5 * 1 > 0


def test_the_smallest_negative_number_keeps_a_layer_active():
    one = Affine(np.ones((1, 1)), np.zeros(1))
    tiny = Affine(np.array([[-5e-324]]), np.zeros(1))
    assert active_layers((one, tiny, one)) == (0, 1)
    assert active_layers((one, one, one), nonnegative_input=True) == ()
    assert len(merge_layers((one, tiny, one))) == 3


def test_bad_arguments_are_refused_with_a_sentence():
    chain = tuple(Affine(np.ones(shape), np.zeros(shape[1])) for shape in ((2, 3), (3, 1)))
    with pytest.raises(ValueError, match="must be numbers >= 0"):
        drop_negative_parts(chain, -1.0)
    for tol in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="must be a number >= 0"):
            active_layers(chain, tol)
    for inputs in (np.ones((0, 2)), np.full((1, 2), np.nan)):
        with pytest.raises(ValueError, match="are empty or not all finite: pass examples"):
            drop_negative_parts(chain, 1.0, inputs=inputs)
    with pytest.raises(ValueError, match="an input is -1 and nonnegative_input says"):
        drop_negative_parts(chain, 1.0, inputs=-np.ones((1, 2)), nonnegative_input=True)
    with pytest.raises(ValueError, match="which jit and grad hide"):
        jax.jit(merge_layers)(jax.tree.map(jnp.asarray, chain))


def test_a_run_is_multiplied_in_float64_and_rounded_once():
    layers = [
        Affine(np.array([[size]], np.float32), np.zeros(1, np.float32))
        for size in (1e20, 1e20, 1e-20, 1e-20)
    ]
    (merged,) = merge_layers(layers, nonnegative_input=True)
    assert merged.kernel.dtype == np.float32
    np.testing.assert_allclose(merged.kernel, 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="layers 0 to 1 merge into weights beyond the range of"):
        merge_layers(layers[:2], nonnegative_input=True)
