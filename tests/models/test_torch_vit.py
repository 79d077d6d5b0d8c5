"""State dicts of torchvision's and timm's ViTs: outputs against NumPy; refusals."""

import jax
import numpy as np
import pytest
import scipy.special

from cka_sr_jax.models import create_model, from_torchvision, vit

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 12, 3, 2, 4, 4, 5

# The entries of each library, written out as it names them.
TIMM = {
    "class_token": "cls_token", "positions": "pos_embed", "patches": "patch_embed.proj",
    "norm": "norm", "head": "head", "block": "blocks.{}", "norm1": "norm1", "norm2": "norm2",
    "qkv": "attn.qkv.", "out": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
TORCHVISION = {
    "class_token": "class_token", "positions": "encoder.pos_embedding", "patches": "conv_proj",
    "norm": "encoder.ln", "head": "heads.head", "block": "encoder.layers.encoder_layer_{}",
    "norm1": "ln_1", "norm2": "ln_2", "qkv": "self_attention.in_proj_",
    "out": "self_attention.out_proj", "up": "mlp.0", "down": "mlp.3",
}  # fmt: skip
LEGACY = TORCHVISION | {"up": "mlp.linear_1", "down": "mlp.linear_2"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "base", (WIDTH, DEPTH, HEADS))


def model_of(classes=CLASSES, **options):
    return create_model("vit-base", classes, patch=PATCH, **options)


def state_dict(names):
    rng, state = np.random.default_rng(0), {}

    def add(name, outputs, inputs):
        state[f"{name}weight"] = rng.normal(size=(outputs, inputs)) / inputs**0.5
        state[f"{name}bias"] = rng.normal(size=outputs)

    def add_norm(name):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, WIDTH)
        state[f"{name}.bias"] = rng.normal(size=WIDTH)

    state[names["class_token"]] = rng.normal(size=(1, 1, WIDTH))
    state[names["positions"]] = rng.normal(size=(1, 1 + SIDE**2, WIDTH))
    state[f"{names['patches']}.weight"] = rng.normal(size=(WIDTH, 3, PATCH, PATCH)) / 7
    state[f"{names['patches']}.bias"] = rng.normal(size=WIDTH)
    for i in range(DEPTH):
        block = names["block"].format(i)
        add(f"{block}.{names['qkv']}", 3 * WIDTH, WIDTH)
        add(f"{block}.{names['out']}.", WIDTH, WIDTH)
        add(f"{block}.{names['up']}.", 4 * WIDTH, WIDTH)
        add(f"{block}.{names['down']}.", WIDTH, 4 * WIDTH)
        add_norm(f"{block}.{names['norm1']}")
        add_norm(f"{block}.{names['norm2']}")
    add_norm(names["norm"])
    add(f"{names['head']}.", CLASSES, WIDTH)
    return {name: np.asarray(array, np.float32) for name, array in state.items()}


def torch_vit(state, images, names):
    """What both libraries' ViT computes in evaluation, for images [b, c, h, w]."""
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def linear(x, name):
        return x @ state[f"{name}weight"].T + state[f"{name}bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, block):
        b, t, _ = x.shape
        # timm: qkv(x).reshape(b, t, 3, heads, head_dim); torch splits the rows of in_proj alike.
        qkv = linear(x, f"{block}.{names['qkv']}").reshape(b, t, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS)
        mixed = (scipy.special.softmax(scores, -1) @ value).transpose(0, 2, 1, 3)
        return linear(mixed.reshape(b, t, WIDTH), f"{block}.{names['out']}.")

    b, c, h, w = images.shape
    cut = images.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    kernel = state[f"{names['patches']}.weight"]
    x = np.einsum("bchiwj,dcij->bhwd", cut, kernel).reshape(b, -1, WIDTH)
    x = x + state[f"{names['patches']}.bias"]
    token = np.tile(state[names["class_token"]], (b, 1, 1))
    x = np.concatenate([token, x], 1) + state[names["positions"]]
    for i in range(DEPTH):
        block = names["block"].format(i)
        x = x + attention(norm(x, f"{block}.{names['norm1']}"), block)
        y = linear(norm(x, f"{block}.{names['norm2']}"), f"{block}.{names['up']}.")
        y = y * (1 + scipy.special.erf(y / np.sqrt(2))) / 2
        x = x + linear(y, f"{block}.{names['down']}.")
    return linear(norm(x, names["norm"])[:, 0], f"{names['head']}.")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("names", [TIMM, TORCHVISION, LEGACY], ids=["timm", "torch", "legacy"])
def test_the_loaded_vit_computes_what_pytorch_defines(names, scan):
    state, model = state_dict(names), model_of(scan=scan)
    variables = from_torchvision(state, model)
    images = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits = apply(variables, images.transpose(0, 2, 3, 1))
    expected = torch_vit(state, images, names)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_new_head_for_other_classes():
    state, model = state_dict(TIMM), model_of(classes=7)
    params = from_torchvision(state, model, new_head=jax.random.key(0))["params"]
    assert params["head"]["kernel"].shape == (WIDTH, 7)
    assert np.any(params["head"]["kernel"])
    assert not np.any(params["head"]["bias"])
    np.testing.assert_array_equal(params["class_token"], state["cls_token"])
    headless = {name: array for name, array in state.items() if not name.startswith("head")}
    again = from_torchvision(headless, model, new_head=jax.random.key(0))["params"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def changed(**entries):
    state = state_dict(TIMM)
    for name, array in entries.items():
        name = name.replace("__", ".")
        if array is None:
            del state[name]
        else:
            state[name] = array
    return state


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({}, {}, "no entry 'encoder.pos_embedding' or 'pos_embed'"),
        (changed(norm__bias=None), {}, "no entry for 'norm.bias'"),
        (changed(blocks__2__mlp__fc1__bias=None), {"scan": True}, "no entry for 'block2.up.bias'"),
        (
            changed(dist_token=np.ones((1, 1, WIDTH)), pos_embed=np.ones((1, 18, WIDTH))),
            {},
            "has a distillation token",
        ),
        (changed(fc_norm__bias=np.ones(WIDTH)), {}, "'fc_norm.bias' has no place"),
        (changed(blocks__3__norm1__bias=np.ones(WIDTH)), {}, "'blocks.3.norm1.bias' has no place"),
        (changed(), {"classes": 7}, r"'head.bias' makes a parameter of shape \(5,\)"),
        (changed(blocks__0__attn__qkv__bias=np.ones(9)), {}, "'blocks.0.attn.qkv.bias' makes"),
        (changed(pos_embed=np.ones((1, 18, WIDTH))), {}, "'pos_embed' makes a parameter of shape"),
        (changed(), {"keep_rates": (0.5,)}, "have no keep scores, and keep_rates="),
    ],
)
def test_what_does_not_fit_is_refused(state, options, message):
    with pytest.raises(ValueError, match=message):
        from_torchvision(state, model_of(**options))
