"""Channels that `shrink` removes and keeps, in networks small enough to see why."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.accounting import Point, Wiring, shrink

CHAIN = Wiring(((Point(("a",), ("b",)),),))


def relu(x):
    return np.maximum(x, 0)


def naive_conv(x, kernel, bias, padding):
    """[h, w, in] -> [h', w', out], position by position."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    rows, columns = (n - k + 1 for n, k in zip(x.shape, kernel.shape[:2], strict=False))
    y = np.zeros((rows, columns, kernel.shape[-1]))
    for i, j, u, v in np.ndindex(rows, columns, *kernel.shape[:2]):
        y[i, j] += x[i + u, j + v] @ kernel[u, v]
    return y + bias


def two_convolutions(bias):
    """Channel 1 of the first convolution is the constant relu(bias); `x` is an image."""
    rng = np.random.default_rng(0)
    a = {"kernel": rng.normal(size=(3, 3, 2, 3)), "bias": np.array([0.1, bias, 0.2])}
    a["kernel"][..., 1] = 0
    b = {"kernel": rng.normal(size=(3, 3, 3, 2)), "bias": np.zeros(2)}
    return {"params": {"a": a, "b": b}}, rng.normal(size=(6, 5, 2))


def apply_two(variables, x, padding):
    a, b = variables["params"]["a"], variables["params"]["b"]
    return naive_conv(relu(naive_conv(x, **a, padding=1)), **b, padding=padding)


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_goes_unless_it_ends_at_the_border(bias, padding):
    variables, x = two_convolutions(bias)
    wiring = CHAIN._replace(padded=frozenset(["b"] if padding else []))
    new, _ = shrink(variables, {}, wiring)
    stays = padding == 1 and bias > 0
    assert new["params"]["a"]["bias"].size == (3 if stays else 2)
    expected = apply_two(variables, x, padding)
    np.testing.assert_allclose(apply_two(new, x, padding), expected, atol=1e-12)
    # Folded in spite of the padding it would be wrong, at the border alone.
    if stays:
        wrong = apply_two(shrink(variables, {}, CHAIN)[0], x, padding) - expected
        assert np.abs(wrong[1:-1, 1:-1]).max() < 1e-12 < 1e-2 < np.abs(wrong[0]).max()


def test_a_channel_that_nothing_reads_goes_whatever_it_is():
    variables, x = two_convolutions(0.5)
    variables["params"]["b"]["kernel"][:, :, 0] = 0
    masks = {"a": {"kernel": variables["params"]["a"]["kernel"] != 0, "bias": optax.MaskedNode()}}
    wiring = CHAIN._replace(padded=frozenset(["b"]))
    new, kept = shrink(variables, masks, wiring)
    assert new["params"]["a"]["bias"].tolist() == [0.5, 0.2]
    np.testing.assert_array_equal(kept["a"]["kernel"], new["params"]["a"]["kernel"] != 0)
    np.testing.assert_allclose(apply_two(new, x, 1), apply_two(variables, x, 1), atol=1e-12)


def norm_of(n, seed):
    rng = np.random.default_rng(seed)
    params = {"scale": rng.normal(size=n), "bias": rng.normal(size=n)}
    return params, {"mean": rng.normal(size=n), "var": rng.uniform(0.5, 2, n)}


def residual():
    """stem -> relu -> (+ conv2 of a block) -> relu -> head, dense layers with BatchNorm."""
    rng = np.random.default_rng(1)
    sizes = {"stem": (3, 4), "conv1": (4, 5), "conv2": (5, 4), "head": (4, 2)}
    params = {name: {"kernel": rng.normal(size=size)} for name, size in sizes.items()}
    params["head"]["bias"] = rng.normal(size=2)
    stats = {}
    for i, (name, size) in enumerate(list(sizes.items())[:3]):
        params[f"{name}_bn"], stats[f"{name}_bn"] = norm_of(size[1], i)
    stream = (Point(("stem",), ("conv1",)), Point(("conv2",), ("head",)))
    norms = {name: f"{name}_bn" for name in ("stem", "conv1", "conv2")}
    wiring = Wiring((stream, (Point(("conv1",), ("conv2",)),)), norms)
    return {"params": params, "batch_stats": stats}, wiring


def apply_residual(variables, x):
    params, stats = variables["params"], variables["batch_stats"]

    def layer(name, x):
        norm, stat = params[f"{name}_bn"], stats[f"{name}_bn"]
        y = (x @ params[name]["kernel"] - stat["mean"]) / np.sqrt(stat["var"] + 1e-5)
        return y * norm["scale"] + norm["bias"]

    h = relu(layer("stem", x))
    h = relu(h + layer("conv2", relu(layer("conv1", h))))
    return h @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("zeros", "width"),
    [
        ({"stem": (slice(None), [0, 2])}, 4),  # the block still writes to them
        ({"stem": (slice(None), [0, 2]), "conv2": (slice(None), [2, 3])}, 3),  # channel 2 is dead
        ({"head": ([1, 3],), "conv1": ([3],)}, 3),  # channel 1 is read by conv1, channel 3 by none
        # Channel 1 is read by none, and channel 3 by conv1 alone, where it is still constant.
        ({"head": ([1, 3],), "conv1": ([1],), "stem": (slice(None), [3])}, 2),
    ],
)
def test_a_stream_loses_a_channel_once_all_its_layers_can(zeros, width):
    variables, wiring = residual()
    for name, index in zeros.items():
        variables["params"][name]["kernel"][index] = 0
    new, _ = shrink(variables, {}, wiring)
    params = new["params"]
    assert params["stem"]["kernel"].shape == (3, width)
    assert params["conv2"]["kernel"].shape == (5, width)
    assert params["conv1"]["kernel"].shape == (width, 5)
    assert params["head"]["kernel"].shape == (width, 2)
    for tree in (params["conv2_bn"], new["batch_stats"]["stem_bn"]):
        assert {leaf.size for leaf in tree.values()} == {width}
    x = np.random.default_rng(2).normal(size=(7, 3))
    np.testing.assert_allclose(apply_residual(new, x), apply_residual(variables, x), atol=1e-12)
    again, _ = shrink(new, {}, wiring)
    jax.tree.map(np.testing.assert_array_equal, again, new)


def test_a_constant_before_a_batch_norm_goes_out_of_its_mean():
    variables, wiring = residual()
    params = variables["params"]
    params["conv1"]["kernel"][:, 2] = 0
    params["conv1_bn"]["bias"][2] = 5.0  # the constant is above 0
    new, _ = shrink(variables, {}, wiring)
    assert new["params"]["conv1"]["kernel"].shape == (4, 4)
    same = np.array_equal(
        new["batch_stats"]["conv2_bn"]["mean"], variables["batch_stats"]["conv2_bn"]["mean"]
    )
    assert not same
    x = np.random.default_rng(2).normal(size=(7, 3))
    np.testing.assert_allclose(apply_residual(new, x), apply_residual(variables, x), atol=1e-12)


def test_removal_goes_on_until_nothing_changes():
    """Unit 0 of c is not read, so unit 1 of b is not, so unit 0 of a is not; b then is constant."""
    eye = np.eye(2)
    params = {name: {"kernel": eye.copy(), "bias": np.array([1.0, 2.0])} for name in "abcd"}
    params["d"]["kernel"][0] = 0
    params["c"]["kernel"] = np.array([[0.0, 1.0], [1.0, 0.0]])  # unit 1 of b goes to unit 0 of c
    params["b"]["kernel"] = np.array([[0.0, 1.0], [0.0, 0.0]])  # unit 0 of b is constant
    streams = tuple((Point((one,), (two,)),) for one, two in ("ab", "bc", "cd"))
    new, _ = shrink({"params": params}, {}, Wiring(streams))
    layers = new["params"]
    assert [layers[name]["kernel"].shape for name in "abcd"] == [(2, 1), (1, 1), (1, 1), (1, 2)]

    def apply(layers, x):
        for name in "abc":
            x = relu(x @ layers[name]["kernel"] + layers[name]["bias"])
        return x @ layers["d"]["kernel"] + layers["d"]["bias"]

    x = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(apply(layers, x), apply(params, x), atol=1e-12)


def test_a_dense_layer_on_flattened_images_loses_each_position():
    kernel = np.arange(12.0).reshape(6, 2)  # two positions of three channels
    a = {"kernel": np.array([[1.0, 0.0, 2.0]]), "bias": np.array([0.0, 3.0, 0.0])}
    variables = {"params": {"a": a, "b": {"kernel": kernel, "bias": np.zeros(2)}}}
    new, _ = shrink(variables, {}, CHAIN)
    np.testing.assert_array_equal(new["params"]["b"]["kernel"], kernel[[0, 2, 3, 5]])
    np.testing.assert_array_equal(new["params"]["b"]["bias"], 3 * (kernel[1] + kernel[4]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_constants_that_are_not_finite_stay(value):
    a = {"kernel": np.array([[1.0, 0.0]]), "bias": np.array([0.0, value])}
    variables = {"params": {"a": a, "b": {"kernel": np.ones((2, 1)), "bias": np.zeros(1)}}}
    new, _ = shrink(variables, {}, CHAIN)
    np.testing.assert_array_equal(new["params"]["a"]["bias"], [0.0, value])


def test_types_and_kinds_of_arrays_stay():
    a = {"kernel": jnp.array([[1.0, 0.0]], jnp.bfloat16), "bias": jnp.array([0, 2], jnp.bfloat16)}
    b = {"kernel": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)}
    layers = shrink({"params": {"a": a, "b": b}}, {}, CHAIN)[0]["params"]
    assert isinstance(layers["a"]["kernel"], jax.Array)
    assert layers["a"]["kernel"].dtype == jnp.bfloat16
    assert isinstance(layers["b"]["bias"], np.ndarray)
    assert layers["b"]["bias"] == np.float32(2)


@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        (Wiring(((Point(("c",), ("b",)),),)), "names the layer 'c', and the variables have no par"),
        (Wiring(((Point(("a",), ("a",)),),)), "a takes 1 channels, and its stream has 2, as many"),
        (Wiring(((Point(("a", "b"), ()),),)), "b makes 1 channels, and its stream has 2, as many"),
    ],
)
def test_a_wiring_that_does_not_fit_is_one_sentence(wiring, message):
    a = {"kernel": np.ones((1, 2)), "bias": np.zeros(2)}
    variables = {"params": {"a": a, "b": {"kernel": np.ones((2, 1)), "bias": np.zeros(1)}}}
    with pytest.raises(ValueError, match=message) as error:
        shrink(variables, {}, wiring)
    assert "\n" not in str(error.value)
