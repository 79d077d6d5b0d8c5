"""The CKA of a data set, against NumPy, for Linen, NNX and any other model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cka_sr_jax.similarity import (
    CKAMatrix,
    cka_from_hsic,
    cka_matrix,
    cka_over_batches,
    compare_cka,
    distinct,
    hsic_matrix,
)

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
PARTS = [X[:32], X[32:64], X[64:]]  # 32, 32 and 6
captures = pytest.mark.skipif(
    not hasattr(nnx, "capture"), reason="flax 0.11 records only what an NNX model sows"
)


def unbiased_hsic(x, y):
    """HSIC_1 of two features (Song et al. 2012, eq. 5), sum by sum."""
    n = len(x)
    k, m = (feature.astype(float) @ feature.astype(float).T for feature in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    rows = k.sum(axis=1) @ m.sum(axis=1)
    total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
    return total / (n * (n - 3))


def cka_of_set(batches):
    """CKA from the means of HSIC over batches of features, each sample counted once."""
    layers = range(len(batches[0]))
    samples = sum(len(features[0]) for features in batches)
    hsic = np.array(
        [
            [sum(len(f[0]) * unbiased_hsic(f[i], f[j]) for f in batches) / samples for j in layers]
            for i in layers
        ]
    )
    scale = np.sqrt(np.diag(hsic))
    return hsic / np.outer(scale, scale)


def features_of(scale, x):
    """Three features of plain arrays."""
    return {"first": [x, jnp.tanh(scale * x)], "second": [jnp.square(x)]}


def as_arrays(x, scale=2.0):
    return [x, np.tanh(scale * x), x**2]


def test_it_is_the_ratio_of_mean_hsics():
    matrix = cka_over_batches(features_of)(jnp.float32(2), PARTS)
    np.testing.assert_allclose(matrix, cka_of_set([as_arrays(x) for x in PARTS]), atol=1e-5)
    of_batches = np.mean([cka_matrix(tuple(as_arrays(x))) for x in PARTS], axis=0)
    assert abs(matrix - of_batches).max() > 0.01  # a mean of ratios is another number


def test_batches_of_one_size_give_the_mean_of_their_hsics_to_the_last_bit():
    parts = PARTS[:2]
    total = sum(jax.jit(hsic_matrix)(tuple(as_arrays(x))) for x in parts)
    # The ratio compiled, as there: XLA may round it otherwise than the same ratio step by step.
    expected = jax.jit(lambda total, count: cka_from_hsic(total / count))(total, 2.0)
    given = cka_over_batches(lambda _, x: x)(None, [tuple(as_arrays(x)) for x in parts])
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(("debiased", "least"), [(True, 4), (False, 2)])
def test_a_batch_with_too_few_samples_is_left_out(debiased, least):
    cka = cka_over_batches(features_of, debiased=debiased)
    whole = cka(jnp.float32(2), PARTS[:2])
    np.testing.assert_array_equal(cka(jnp.float32(2), [*PARTS[:2], X[: least - 1]]), whole)
    assert abs(cka(jnp.float32(2), [*PARTS[:2], X[:least]]) - whole).max() > 0


@pytest.mark.parametrize("batches", [[], [X[:3]], iter([]), [3.0]])
def test_no_batch_is_an_error(batches):
    with pytest.raises(ValueError, match="no minibatch has the 4 samples that CKA needs"):
        cka_over_batches(features_of)(jnp.float32(2), batches)


def test_names_that_repeat_are_numbered():
    assert distinct(["a", "b", "a", "b", "c"]) == ("a.0", "b.0", "a.1", "b.1", "c")


# --- Linen


class Sowing(nn.Module):
    """Two stages, sown from the top, and a mode that changes what it computes."""

    @nn.compact
    def __call__(self, x, train):
        for i in range(3):
            x = nn.tanh(nn.Dense(8, name=f"dense{i}")(x))
            self.sow("features", "late" if i else "early", x)
        return x if train else x + 1


class Plain(nn.Module):
    """Three layers that sow nothing, by automatic names, and a head."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = jnp.tanh(nn.Dense(6)(x))
        return nn.Dense(2, name="head")(x)


def sown_outputs(params, x):
    """What `Sowing` sows, in NumPy."""
    outputs = []
    for i in range(3):
        x = np.tanh(x @ np.asarray(params[f"dense{i}"]["kernel"]))
        outputs.append(x)
    return outputs


def test_what_a_linen_model_sows():
    variables = Sowing().init(KEY, X, True)  # with what it sowed here, which must not count
    assert "features" in variables
    found = compare_cka(Sowing(), variables, PARTS, train=False)
    assert isinstance(found, CKAMatrix)
    assert found.names == ("early", "late.0", "late.1")
    assert found.stages == ("early", "late", "late")
    expected = cka_of_set([sown_outputs(variables["params"], x) for x in PARTS])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_the_modules_outputs_of_a_linen_model_that_sows_nothing():
    model = Plain()
    variables = model.init(KEY, X)
    everything = compare_cka(model, variables, PARTS[:1])
    assert everything.names == ("Dense_0", "Dense_1", "Dense_2", "head", "__call__")
    assert everything.stages == ("stage1",) * 3 + ("stage2",) * 2
    some = compare_cka(model, variables, iter(PARTS[:1]), include=(f"Dense_{i}" for i in (2, 0)))
    assert some.names == ("Dense_0", "Dense_2")
    np.testing.assert_allclose(
        some.values, np.array(everything.values)[::2, ::2][:2, :2], atol=1e-6
    )
    # The last two are one array.
    assert everything.values[-1, -2] == pytest.approx(1, abs=1e-5)


def test_outputs_of_a_model_that_sows_are_taken_by_include():
    variables = Sowing().init(KEY, X, True)
    found = compare_cka(Sowing(), variables, PARTS[:1], include="dense*", train=True)
    assert found.names == ("dense0", "dense1", "dense2")
    outputs, x = [], X[:32]
    for i in range(3):
        outputs.append(x @ np.asarray(variables["params"][f"dense{i}"]["kernel"]))
        x = np.tanh(outputs[-1])
    np.testing.assert_allclose(found.values, cka_of_set([outputs]), atol=1e-5)
    with pytest.raises(ValueError, match="'conv' matches none of the recorded features: dense0"):
        compare_cka(Sowing(), variables, PARTS[:1], include="conv", train=True)


def test_scanned_layers_are_told_apart():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = jnp.tanh(nn.Dense(6)(x))
            self.sow("features", "out", x)
            return x, None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "features": 0}
            return nn.scan(Layer, axes, split_rngs={"params": True}, length=3)()(x, None)[0]

    variables = Scanned().init(KEY, X)
    found = compare_cka(Scanned(), variables, PARTS[:1], stacked={"out": 1})
    assert [name.rpartition(".")[2] for name in found.names] == ["0", "1", "2"]
    (kernels,) = (leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 3)
    features = []
    for x in PARTS[:1]:
        outputs = []
        for kernel in np.asarray(kernels):
            x = np.tanh(x @ kernel)
            outputs.append(x)
        features.append(outputs)
    np.testing.assert_allclose(found.values, cka_of_set(features), atol=1e-5)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"dense0": 1}, "the variables have no 'params' but dense0: pass what model.init returns"),
        (None, "the variables have no 'params' but NoneType"),
    ],
)
def test_variables_without_params_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        compare_cka(Sowing(), variables, PARTS[:1])


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="the model is a function, neither a Linen nor an NNX"):
        compare_cka(lambda x: x, {}, PARTS[:1])


# --- NNX


class NnxBlock(nnx.Module):
    def __init__(self, sows):
        self.linear = nnx.Linear(6, 6, use_bias=False, rngs=nnx.Rngs(1))
        self.sows = sows

    def __call__(self, x):
        x = jnp.tanh(self.linear(x))
        if self.sows:
            self.sow(nnx.Intermediate, "out", x)
        return x


class NnxNetwork(nnx.Module):
    def __init__(self, sows):
        self.one, self.two = NnxBlock(sows), NnxBlock(sows)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.dropout(self.two(self.one(x)))


def nnx_outputs(model, x, scale=1.0):
    """The outputs of the two blocks, in NumPy."""
    first = np.tanh(x @ (scale * np.asarray(model.one.linear.kernel[...])))
    return [first, np.tanh(first @ (scale * np.asarray(model.two.linear.kernel[...])))]


def test_what_an_nnx_model_sows():
    model = NnxNetwork(sows=True)
    model.eval()
    before = jax.tree.structure(nnx.state(model))
    found = compare_cka(model, None, PARTS[:1])
    assert found.names == ("one/out", "two/out")
    expected = cka_of_set([nnx_outputs(model, x) for x in PARTS[:1]])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert jax.tree.structure(nnx.state(model)) == before  # nothing stays in it


def test_a_state_in_place_of_the_nnx_models_own():
    model = NnxNetwork(sows=True)
    model.eval()
    state = jax.tree.map(lambda leaf: 3 * leaf, nnx.state(model, nnx.Param))
    kernel = np.array(model.one.linear.kernel[...])
    found = compare_cka(model, state, PARTS[:1])
    expected = cka_of_set([nnx_outputs(model, x, 3.0) for x in PARTS[:1]])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    np.testing.assert_array_equal(model.one.linear.kernel[...], kernel)


@captures
def test_the_modules_outputs_of_an_nnx_model():
    model = NnxNetwork(sows=False)
    model.eval()
    assert compare_cka(model, None, PARTS[:1]).names[-1] == "__call__"
    found = compare_cka(model, None, PARTS[:1], include=["/one/__call__", "/two/__call__"])
    assert found.names == ("one", "two")
    expected = cka_of_set([nnx_outputs(model, x) for x in PARTS[:1]])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


@pytest.mark.skipif(hasattr(nnx, "capture"), reason="flax 0.12 records outputs")
def test_before_flax_0_12_an_nnx_model_must_sow():
    with pytest.raises(ValueError, match=r"the model sows nothing, .* from Flax 0.12 on"):
        compare_cka(NnxNetwork(sows=False), None, PARTS[:1])
