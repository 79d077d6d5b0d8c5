"""Scores of layers and blocks against naive NumPy, and the removal of a ReLU."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cka_sr_jax.layer_sparsity import (
    Affine,
    apply_chain,
    cka_without_blocks,
    cka_without_layers,
    layer_entropies,
    remove_activation,
)
from cka_sr_jax.models import create_model
from tests.layer_sparsity.chains import conv, forward, random_chain

SIZES = (5, 7, 6, 4, 3)


def chain_and_inputs(seed, taps=None):
    rng = np.random.default_rng(seed)
    chain = random_chain(rng, np.float32, SIZES, taps)
    shape = (9, SIZES[0]) if taps is None else (3, 9, 9, SIZES[0])
    return chain, rng.normal(size=shape).astype(np.float32)


def naive_entropy(values):
    """Of one unit, from a list of its values before the ReLU."""
    p = sum(float(v) > 0 for v in values) / len(values)
    return sum(-q * np.log2(q) for q in (p, 1 - p) if q > 0)


def naive_cka(x, y):
    """Linear and biased, over the first axis."""
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_entropies_equal_a_naive_count(seed, images):
    chain, x = chain_and_inputs(seed, [(2, 2), (1, 1), (3, 3), (1, 1)] if images else None)
    found = layer_entropies(chain, x)
    assert found.shape == (len(chain) - 1,)
    h = x
    for layer, score in zip(chain[:-1], found, strict=True):
        h = (conv(h, layer.kernel) if images else h @ layer.kernel) + layer.bias
        units = h.reshape(-1, h.shape[-1]).T
        assert score == pytest.approx(np.mean([naive_entropy(unit) for unit in units]), abs=1e-5)
        h = np.maximum(h, 0)


def test_a_layer_that_is_always_on_or_off_has_entropy_0_and_leaves_without_a_trace():
    chain, x = chain_and_inputs(3)
    on = chain[1]._replace(bias=chain[1].bias + 1000)
    chain = (chain[0], on, *chain[2:])
    assert layer_entropies(chain, x)[1] == 0
    assert cka_without_layers(chain, x)[1] == pytest.approx(0, abs=1e-4)
    shorter = remove_activation(chain, 1)
    np.testing.assert_allclose(apply_chain(shorter, x), apply_chain(chain, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("images", [False, True])
def test_cka_without_layers_equals_naive_numpy(images):
    chain, x = chain_and_inputs(1, [(2, 2), (1, 1), (3, 3), (1, 1)] if images else None)

    def features(linear):
        h = x
        for j, layer in enumerate(chain[:-1]):
            h = (conv(h, layer.kernel) if images else h @ layer.kernel) + layer.bias
            h = h if j == linear else np.maximum(h, 0)
        return h

    expected = [1 - naive_cka(features(None), features(j)) for j in range(len(chain) - 1)]
    np.testing.assert_allclose(cka_without_layers(chain, x), expected, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_removed_relu_is_linear_in_naive_numpy(seed, layer):
    chain, x = chain_and_inputs(seed)
    shorter = remove_activation(chain, layer) if layer < 3 else chain
    h = x.astype(np.float64)
    for j, (kernel, bias) in enumerate(chain):
        h = h @ kernel + bias
        h = h if j in (layer, len(chain) - 1) and (j == 3 or layer < 3) else np.maximum(h, 0)
    np.testing.assert_allclose(forward(shorter, x), h, rtol=1e-4, atol=1e-4)
    assert len(shorter) == len(chain) - (layer < 3)


def test_blocks_of_a_resnet_are_scored_without_their_branch():
    """Against a network of fewer blocks, which is what a block without branch leaves."""
    model = create_model("resnet20", 3, width=4)
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), x, train=False))()

    def features(model, variables, x):
        _, sown = model.apply(variables, x, train=False, mutable=["features"])
        return sown["features"]["stage3"][-1].mean((1, 2))

    def of(params, x):
        return features(model, {**variables, "params": params}, x)

    blocks = ["stage1_block1", "stage3_block2"]
    found = cka_without_blocks(of, variables["params"], blocks, x)
    assert list(found) == blocks
    whole = np.asarray(of(variables["params"], x))
    widths = [(4,), *[(4, 4)] * 3, *[(8, 8)] * 3, *[(16, 16)] * 3]
    for place, block in zip((2, 9), blocks, strict=True):
        left = [() if i == place else width for i, width in enumerate(widths)]
        short = create_model("resnet20", 3, widths=tuple(left))
        without = jax.tree.map(lambda a: a, dict(variables))
        for kind in ("params", "batch_stats"):
            without[kind] = {k: v for k, v in variables[kind].items() if k != block}
        expected = 1 - naive_cka(whole, np.asarray(features(short, without, x)))
        assert found[block] == pytest.approx(expected, abs=1e-4)
    assert len(set(found.values())) == 2


def test_where_nothing_varies_any_more_the_score_is_1():
    def features(params, x):
        return x * params["scale"]["value"][None]

    x = jnp.arange(6.0).reshape(3, 2)
    assert cka_without_blocks(features, {"scale": {"value": jnp.ones(2)}}, ["scale"], x) == {
        "scale": 1.0
    }


def test_mistakes_are_one_sentence():
    chain, x = chain_and_inputs(0)
    nan = (chain[0]._replace(bias=chain[0].bias * np.nan), *chain[1:])
    for score in (layer_entropies, cka_without_layers):
        for message, mistake in {
            "NaN or infinite": lambda score=score: score(nan, x),
            "the input has shape": lambda score=score: score(chain, x[:, :2]),
            "there are no inputs": lambda score=score: score(chain, x[:0]),
            "no hidden layer": lambda score=score: score(chain[:1], x),
            "call it outside": lambda score=score: jax.jit(lambda c: score(c, x))(chain),
        }.items():
            with pytest.raises(ValueError, match=message):
                mistake()
    for layer in (-1, 3, 9):
        with pytest.raises(ValueError, match=f"layer={layer} is not a hidden layer: .* has 0 to 2"):
            remove_activation(chain, layer)
    with pytest.raises(ValueError, match="has none"):
        remove_activation((Affine(np.ones((1, 1)), np.zeros(1)),), 0)
    with pytest.raises(ValueError, match="with or without 'a' are not finite"):
        cka_without_blocks(lambda p, x: x * jnp.nan, {"a": {"kernel": jnp.ones(1)}}, "a", x)
    with pytest.raises(ValueError, match=r"'block9' matches no parameter: .* a/kernel"):
        cka_without_blocks(lambda p, x: x, {"a": {"kernel": jnp.ones(1)}}, ["block9"], x)


def test_the_docstrings_examples_run():
    module = importlib.import_module("cka_sr_jax.layer_sparsity.removal")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert doctest.testmod(module).failed == 0
