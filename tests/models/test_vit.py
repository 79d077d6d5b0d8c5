"""ViT's size, names and features, and the whole network against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cka_sr_jax.accounting import kernel_positions, layer_rows, total_row
from cka_sr_jax.models import ViT, create_model, stacked_layers, vit
from cka_sr_jax.similarity import cka_penalty
from cka_sr_jax.sparsity import full_masks, layers_of
from tests.models.shapes import KEY, count, feature_shapes, init_shapes

IMAGE = (8, 12, 3)


@pytest.fixture
def small(monkeypatch):
    """Two blocks of width 8 with two heads, on 2 x 3 patches."""
    monkeypatch.setitem(vit.SIZES, "small32", (8, 2, 2))
    return create_model("vit-small32", 5, patch=4)


def test_parameters():
    """DeiT-Tiny's known number, and that number by hand."""
    tiny = init_shapes(create_model("vit-tiny", 1000), (224, 224, 3))
    assert count(tiny) == 5_717_416
    block = 12 * 192**2 + 13 * 192
    patches, positions = (16 * 16 * 3 + 1) * 192, (1 + 14 * 14 + 1) * 192
    assert count(tiny) == 12 * block + patches + positions + 2 * 192 + 193 * 1000


def test_names_and_features(small):
    params = init_shapes(small, IMAGE)["params"]
    assert set(params) == {
        "patches", "class_token", "positions", "block0", "block1", "norm", "head",
    }  # fmt: skip
    assert set(params["block0"]) == {"attention_norm", "attention", "mlp_norm", "up", "down"}
    assert feature_shapes(small, IMAGE) == {"blocks": ((2, 7, 8),) * 2}


def test_kernels_are_pruned_and_tokens_and_positions_stay(small):
    variables = init_shapes(small, IMAGE)
    pruned = layers_of(variables["params"])
    block = {f"attention/{name}" for name in ("query", "key", "value", "out")} | {"up", "down"}
    expected = {f"block{i}/{name}/kernel" for i in (0, 1) for name in block}
    assert set(pruned) == expected | {"patches/kernel", "head/kernel"}
    positions = kernel_positions(small, variables, jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    # Each token once, the patches alone, the class token alone.
    assert positions == {**dict.fromkeys(expected, 7), "patches/kernel": 6, "head/kernel": 1}


def naive_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def naive_attention(x, params):
    def heads(name):
        return np.einsum("btd,dhf->bhtf", x, params[name]["kernel"]) + params[name]["bias"][:, None]

    query, key, value = map(heads, ("query", "key", "value"))
    scores = np.einsum("bhtf,bhsf->bhts", query, key) / np.sqrt(query.shape[-1])
    weights = scipy.special.softmax(scores, axis=-1)
    mixed = np.einsum("bhts,bhsf->bthf", weights, value)
    return np.einsum("bthf,hfd->btd", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def naive_vit(params, images, patch):
    b, h, w, c = images.shape
    cut = images.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    kernel = params["patches"]["kernel"].reshape(patch * patch * c, -1)
    x = cut.reshape(b, -1, patch * patch * c) @ kernel + params["patches"]["bias"]
    x = np.concatenate([np.tile(params["class_token"], (b, 1, 1)), x], axis=1)
    x, features = x + params["positions"], []
    for i in range(2):
        block = params[f"block{i}"]
        x = x + naive_attention(naive_norm(x, block["attention_norm"]), block["attention"])
        y = naive_norm(x, block["mlp_norm"]) @ block["up"]["kernel"] + block["up"]["bias"]
        y = y * (1 + scipy.special.erf(y / np.sqrt(2))) / 2
        x = x + y @ block["down"]["kernel"] + block["down"]["bias"]
        features.append(x)
    head = params["head"]
    return features, naive_norm(x, params["norm"])[:, 0] @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("remat", [False, True])
def test_the_network_equals_naive_numpy(small, remat):
    model = small.clone(remat=remat)
    images = np.random.default_rng(0).normal(size=(3, *IMAGE)).astype(np.float32)
    shapes = jax.tree.map(jnp.shape, init_shapes(model, IMAGE)["params"])
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32) / 2,
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    logits, sown = jax.jit(
        lambda: model.apply({"params": params}, images, True, mutable=["features"])
    )()
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    features, expected = naive_vit(exact, images.astype(np.float64), 4)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    for found, feature in zip(sown["features"]["blocks"], features, strict=True):
        np.testing.assert_allclose(found, feature, rtol=1e-3, atol=1e-3)


def stack_blocks(params, depth):
    """The parameters of a network with `scan` from those of one without."""
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block")}
    blocks = [params[f"block{i}"] for i in range(depth)]
    return {**rest, "block": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_blocks_are_the_same_network(small, remat):
    images = jax.random.normal(KEY, (4, *IMAGE))
    params = jax.jit(lambda: small.init(KEY, images, train=True))()["params"]
    scanned = small.clone(scan=True, remat=remat)
    stacked = stack_blocks(params, depth=2)
    shapes = init_shapes(scanned, IMAGE)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stacked)

    def loss(params, model):
        logits, sown = model.apply({"params": params}, images, train=True, mutable=["features"])
        return logits.sum() + cka_penalty(sown["features"]), (logits, sown["features"]["blocks"])

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    expected, (logits, features) = grad(params, small)
    grads, (scanned_logits, scanned_features) = grad(stacked, scanned)
    np.testing.assert_allclose(scanned_logits, logits, rtol=1e-5, atol=1e-6)
    assert len(scanned_features) == 2
    for found, feature in zip(scanned_features, features, strict=True):
        np.testing.assert_allclose(found, feature, rtol=1e-5, atol=1e-6)
    expected = stack_blocks(expected, depth=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected
    )


def test_scanned_blocks_differ_in_their_first_weights(small):
    params = jax.jit(lambda: small.clone(scan=True).init(KEY, jnp.ones((1, *IMAGE)), train=True))()
    first, second = params["params"]["block"]["up"]["kernel"]
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first.std(), second.std(), rtol=0.3)


def test_a_scanned_network_costs_what_the_other_does(small):
    flops = []
    for model in (small, small.clone(scan=True)):
        variables = init_shapes(model, IMAGE)
        image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), variables["params"])
        masks = full_masks(params, stacked=stacked_layers(model))
        positions = kernel_positions(model, variables, image)
        rows = layer_rows(params, masks, positions, stacked=stacked_layers(model))
        flops.append(total_row(rows).flops)
    assert flops[0] == flops[1] > 0


def test_the_penalty_moves_the_blocks(small):
    images = jax.random.normal(KEY, (8, *IMAGE))
    variables = jax.jit(lambda: small.init(KEY, images, train=True))()

    def penalty(params):
        _, sown = small.apply({"params": params}, images, train=True, mutable=["features"])
        return cka_penalty(sown["features"])

    value, grads = jax.jit(jax.value_and_grad(penalty))(variables["params"])
    assert 0 < value <= 2
    assert np.any(grads["block1"]["attention"]["query"]["kernel"])
    assert not np.any(grads["head"]["kernel"])


def test_what_a_vit_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"^Unknown model 'vit-huge', since size='huge' is unknown"
    ):
        create_model("vit-huge", 10)
    with pytest.raises(ValueError, match=r"^patch=0: expected 1 pixel or more"):
        ViT(10, patch=0)
    with pytest.raises(ValueError, match=r"^images of 8x12 cannot be cut .* such as 2\."):
        init_shapes(create_model("vit-tiny", 10), IMAGE)
    with pytest.raises(ValueError, match=r"^keep_rates=\(0.5,\) drops tokens .* scan=True"):
        ViT(10, keep_rates=(0.5,), scan=True)
