"""Top-down attention against a naive NumPy loop, and the masks it makes."""

import doctest
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.models import MLP, create_model
from cka_sr_jax.sparsity import (
    attentive,
    attentive_scores,
    leaf_paths,
    masks_from_paths,
    sparsify,
    static,
)


def naive_shares(h, w, thin):
    """{i: a_i} of one output, from its inputs h and weights w."""
    c = {i: float(h[i]) * float(w[i]) for i in range(len(h))}
    if sum(c.values()) <= 3e-4:
        return {}
    running, theta = 0.0, None
    for value in sorted(c.values()):
        running += value
        if running > 0:
            theta = value
            break
    kept = {i: v for i, v in c.items() if v >= theta - 2e-4 and v > 0}
    if thin:
        mean, deviation = np.mean(list(kept.values())), np.std(list(kept.values()))
        for times in (3, 2, 1, 0):
            above = {i: v for i, v in kept.items() if v >= mean + times * deviation - 1e-9}
            if above:
                kept = above
                break
    return {i: v / sum(kept.values()) for i, v in kept.items()}


def naive_layer(h, w, gates, thin, trace):
    """Gates of the inputs; adds to the trace [i, o] in place."""
    below = np.zeros(len(h))
    for j, gate in enumerate(gates):
        if gate > 0:
            for i, share in naive_shares(h, w[:, j], thin).items():
                below[i] += gate * share
                trace[i, j] += share
    return below


def test_an_mlp_equals_the_naive_loop(monkeypatch):
    monkeypatch.setattr(importlib.import_module("cka_sr_jax.sparsity.attentive"), "BATCH", 3)
    rng = np.random.default_rng(0)
    params = {
        name: {
            "kernel": rng.normal(size=(m, n)).astype(np.float32),
            "bias": rng.normal(size=n).astype(np.float32),
        }
        for name, m, n in (("hidden0", 6, 9), ("hidden1", 9, 8), ("head", 8, 3))
    }
    x, labels = rng.normal(size=(7, 6)).astype(np.float32), np.arange(7) % 3
    traces = {name: np.zeros(layer["kernel"].shape) for name, layer in params.items()}
    for image, label in zip(x, labels, strict=True):
        inputs, active = [image], []
        for name in ("hidden0", "hidden1"):
            inputs.append(np.maximum(inputs[-1] @ params[name]["kernel"] + params[name]["bias"], 0))
            active.append(inputs[-1] > 0)
        gates = np.eye(3)[label]
        for k, name in reversed(list(enumerate(("hidden0", "hidden1", "head")))):
            gates = naive_layer(inputs[k], params[name]["kernel"], gates, True, traces[name])
            if k:
                gates = gates * active[k - 1]
    found = attentive_scores(MLP(3, (9, 8)), {"params": params}, x, labels)
    assert set(found) == {f"{name}/kernel" for name in params}
    for name, trace in traces.items():
        assert trace.any()
        np.testing.assert_allclose(found[f"{name}/kernel"], trace, atol=1e-4)


class Convolutional(nn.Module):
    """Convolutions with strides, padding and BatchNorm, max and average pooling."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=2, padding=1, use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(3, (2, 2), padding="VALID", name="conv2")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def patches(x, size, stride, pad):
    """{(i, j): the patch, flattened in the kernel's order, and its places in the input}."""
    h, w, _ = x.shape
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    places = np.pad(np.arange(x.size).reshape(x.shape), ((pad, pad), (pad, pad), (0, 0)),
                    constant_values=-1)  # fmt: skip
    found = {}
    for i in range((h + 2 * pad - size) // stride + 1):
        for j in range((w + 2 * pad - size) // stride + 1):
            where = np.s_[i * stride : i * stride + size, j * stride : j * stride + size]
            found[i, j] = padded[where].ravel(), places[where].ravel()
    return found


def naive_convolution(x, kernel, gates, stride, pad, trace):
    below = np.zeros(x.size)
    for (i, j), (values, places) in patches(x, kernel.shape[0], stride, pad).items():
        flat = trace.reshape(-1, trace.shape[-1])
        shares = naive_layer(values, kernel.reshape(-1, kernel.shape[-1]), gates[i, j], False, flat)
        for place, gate in zip(places, shares, strict=True):
            if place >= 0:
                below[place] += gate
    return below.reshape(x.shape)


def convolve(x, kernel, stride, pad):
    found = patches(x, kernel.shape[0], stride, pad)
    rows, columns = (max(place[axis] for place in found) + 1 for axis in (0, 1))
    y = np.zeros((rows, columns, kernel.shape[-1]))
    for place, (values, _) in found.items():
        y[place] = values @ kernel.reshape(-1, kernel.shape[-1])
    return y


def test_a_convolutional_network_equals_the_naive_loop():
    model, rng = Convolutional(), np.random.default_rng(1)
    x = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), shapes)
    variables["batch_stats"]["bn"]["var"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    params, stats = variables["params"], variables["batch_stats"]["bn"]
    labels = np.array([0, 1, 1])
    traces = {k: np.zeros(params[k]["kernel"].shape) for k in ("conv1", "conv2", "head")}
    for image, label in zip(x.astype(np.float64), labels, strict=True):
        y = convolve(image, params["conv1"]["kernel"], 2, 1)
        unit = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        a = np.maximum(unit * params["bn"]["scale"] + params["bn"]["bias"], 0)
        pooled = a.reshape(2, 2, 2, 2, 4).max((1, 3))
        b = np.maximum(
            convolve(pooled, params["conv2"]["kernel"], 1, 0) + params["conv2"]["bias"], 0
        )
        means = b.mean((0, 1))
        gates = naive_layer(means, params["head"]["kernel"], np.eye(2)[label], True, traces["head"])
        gates = np.broadcast_to(gates / b[..., 0].size, b.shape) * (b > 0)
        gates = naive_convolution(pooled, params["conv2"]["kernel"], gates, 1, 0, traces["conv2"])
        up = np.zeros_like(a)
        for i, j, c in np.ndindex(2, 2, 4):
            window = a[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
            k, m = np.unravel_index(np.argmax(window), (2, 2))
            up[2 * i + k, 2 * j + m, c] = gates[i, j, c] * (window[k, m] > 0)
        naive_convolution(image, params["conv1"]["kernel"], up, 2, 1, traces["conv1"])
    found = attentive_scores(model, variables, x, labels)
    for name, trace in traces.items():
        assert trace.any(), name
        np.testing.assert_allclose(found[f"{name}/kernel"], trace, atol=1e-4)


def test_residual_networks_are_scored_in_every_layer():
    model = create_model("resnet8", 3, width=4)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), x, train=False))()
    found = attentive_scores(model, variables, x, np.arange(4) % 3)
    kernels = {path for path, leaf in leaf_paths(variables["params"]) if leaf.ndim > 1}
    assert set(found) == kernels
    for path, score in found.items():
        assert np.isfinite(score).all()
        assert (score >= 0).all()
        assert score.any(), path


def test_masks_keep_the_highest_of_each_layer_and_lie_in_those_before():
    rng = np.random.default_rng(0)
    params = {
        k: {"kernel": jnp.ones(s)} for k, s in (("a", (4, 5)), ("b", (6, 2)), ("head", (2, 2)))
    }
    scores = {f"{k}/kernel": rng.random(v["kernel"].shape) for k, v in params.items()}
    first = attentive(params, scores, 0.5, exclude="head")
    second = attentive(params, scores, 0.25, masks=first, exclude="head")
    for name, size in (("a", 20), ("b", 12)):
        score = scores[f"{name}/kernel"]
        expected = score >= np.sort(score, axis=None)[-size // 2]
        np.testing.assert_array_equal(first[name]["kernel"], expected)
        assert int(second[name]["kernel"].sum()) == size // 4
        assert not np.any(second[name]["kernel"] & ~first[name]["kernel"])
    assert isinstance(first["head"]["kernel"], optax.MaskedNode)
    sparsify(optax.sgd(0.1), static(second)).init(params)
    # Where fewer have a score than are kept, the largest weights come, and none from outside.
    weights = {**params, "b": {"kernel": jnp.asarray(rng.normal(size=(6, 2)))}}
    nothing = {path: 0 * score for path, score in scores.items()}
    last = masks_from_paths(params, {"b/kernel": jnp.arange(12).reshape(6, 2) >= 6})
    found = np.asarray(attentive(weights, nothing, 0.25, masks=last, include="b")["b"]["kernel"])
    size = np.abs(weights["b"]["kernel"])
    np.testing.assert_array_equal(found[3:], size[3:] >= np.sort(size[3:], axis=None)[-3])
    assert not found[:3].any()


def test_the_layers_of_a_stack_are_ranked_one_by_one():
    score = np.arange(12.0).reshape(2, 3, 2)
    params = {"blocks": {"kernel": jnp.ones((2, 3, 2))}}
    masks = attentive(params, {"blocks/kernel": score}, 0.5, stacked={"blocks": 1})
    for slice_, values in zip(masks["blocks"]["kernel"], score, strict=True):
        np.testing.assert_array_equal(slice_, values >= np.sort(values, axis=None)[3])


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_a_bfloat16_model_is_scored_nearly_alike(name):
    options = {"hidden": (16,)} if name == "mlp" else {"width": 4}
    x, y = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)), np.arange(4) % 3
    model = create_model(name, 3, **options)
    variables = jax.jit(lambda: model.init(jax.random.key(1), x, train=False))()
    with jax.numpy_dtype_promotion("standard"):  # which a BatchNorm in bfloat16 needs
        found = attentive_scores(model.clone(dtype=jnp.bfloat16), variables, x, y)
    expected = attentive_scores(model, variables, x, y)
    assert np.corrcoef(found["head/kernel"].ravel(), expected["head/kernel"].ravel())[0, 1] > 0.8


def test_mistakes_are_one_sentence():
    model, x = MLP(2, (4,)), jnp.ones((2, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()
    for labels, message in [
        (np.zeros(3, int), r"there are 2 images and labels of shape \(3,\): pass one label"),
        (np.eye(2), r"labels of shape \(2, 2\)"),
        (np.array([0, 2]), "the labels are int64 from 0 to 2: expected whole numbers from 0 to 1"),
        (np.array([-1, 0]), "from -1 to 0"),
        (np.array([0.0, 1.0]), "the labels are float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            attentive_scores(model, variables, x, labels)
    with pytest.raises(ValueError, match="there are 0 images"):
        attentive_scores(model, variables, x[:0], np.zeros(0, int))
    with pytest.raises(ValueError, match="the variables have no 'params'"):
        attentive_scores(model, variables["params"], x, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"the trace of .* is not finite"):
        attentive_scores(model, jax.tree.map(lambda a: a * np.nan, variables), x, np.zeros(2, int))
    ones = {path: np.ones(leaf.shape) for path, leaf in leaf_paths(variables["params"])}
    with pytest.raises(ValueError, match="/kernel has a score or a weight that is not finite"):
        attentive(variables["params"], {k: v * np.nan for k, v in ones.items()}, 0.5)
    with pytest.raises(ValueError, match=r"scores have nothing for head/kernel, of shape \(4"):
        attentive(variables["params"], {"hidden0/kernel": np.ones((3, 4))}, 0.5)
    with pytest.raises(ValueError, match="density"):
        attentive(variables["params"], {}, 0.0)
    vit, images = create_model("vit-micro", 2, patch=4), jnp.ones((1, 8, 8, 1))
    shapes = jax.eval_shape(lambda: vit.init(jax.random.key(0), images, train=False))
    ones = jax.tree.map(lambda v: np.ones(v.shape, np.float32), shapes)
    with pytest.raises(ValueError, match="does not pass the LayerNorm block0/attention_norm: it"):
        attentive_scores(vit, ones, images, np.zeros(1, int))


def test_the_docstrings_examples_run():
    module = importlib.import_module("cka_sr_jax.sparsity.attentive")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert doctest.testmod(module).failed == 0
