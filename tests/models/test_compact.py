"""Compacted models compute what the masked ones compute, and have no channel that could go."""

import doctest
import importlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.accounting import total_row
from cka_sr_jax.models import MLP, compact, create_model, tied_channels
from cka_sr_jax.sparsity import (
    apply_masks,
    channel_masks,
    leaf_paths,
    masks_from_paths,
    rst,
)
from tests.models.shapes import init_shapes

MODELS = {
    "mlp": ({"hidden": (12, 9, 7)}, (4, 4, 1)),
    "lenet5": ({}, (14, 14, 1)),
    "vgg16": ({"width": 4}, (16, 16, 3)),
    "resnet8": ({"width": 6}, (8, 8, 3)),
    "resnet20": ({"width": 4}, (8, 8, 3)),
    "resnet50": ({"width": 2, "stem": "imagenet"}, (32, 32, 3)),
}
SLOW = ("resnet20", "resnet50")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
# vgg16 takes long, and lenet5 has no part that the others lack.
SMALL = [pytest.param(n, marks=pytest.mark.slow) if n in ("vgg16", "lenet5") else n for n in NAMES]


def random_network(name, seed=0):
    """A model, variables whose biases, scales and statistics have either sign, and images."""
    options, image = MODELS[name]
    model, rng = create_model(name, 5, **options), np.random.default_rng(seed)
    new = {}
    for path, leaf in leaf_paths(init_shapes(model, image)):
        value = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:  # He's, so that deep networks neither fade nor explode
            value *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path.endswith("var"):
            value = rng.uniform(0.5, 2, leaf.shape)
        new[path] = jnp.asarray(value, jnp.float32)
    return model, unflatten(new), jnp.asarray(rng.normal(size=(3, *image)), jnp.float32)


def unflatten(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


@partial(jax.jit, static_argnums=0)
def outputs(model, variables, x):
    return model.apply(variables, x, train=False)


def masked(variables, masks):
    return {**variables, "params": apply_masks(variables["params"], masks)}


def kernel_shapes(variables):
    return {p: leaf.shape for p, leaf in leaf_paths(variables["params"]) if leaf.ndim > 1}


def check_same(model, variables, masks, x):
    """The compacted model, which computes the same, twice."""
    found = compact(model, variables, masks, x)
    expected = np.asarray(outputs(model, masked(variables, masks), x))
    result = np.asarray(outputs(found.model, found.variables, x))
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * scale)
    assert result.dtype == expected.dtype
    # The report is of these arrays, and what is left cannot be cut further.
    size = sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]))
    assert total_row(found.after).parameters == size
    again = compact(found.model, found.variables, found.masks, x)
    assert again.model == found.model
    jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)
    for path, mask in leaf_paths(found.masks):
        weights = np.asarray(dict(leaf_paths(found.variables["params"]))[path])
        assert not weights[~np.asarray(mask)].any()
    return found


@pytest.mark.parametrize("name", SMALL)
def test_half_the_tied_channels_can_all_go(name):
    model, variables, x = random_network(name)
    params, exclude = variables["params"], "head"
    masks = channel_masks(params, 0.5, exclude=exclude, tied=tied_channels(model))
    found = check_same(model, variables, masks, x)
    for path, shape in kernel_shapes(variables).items():
        new = kernel_shapes(found.variables)[path]
        outs = shape[-1] if path == "head/kernel" else round(shape[-1] / 2)
        assert new[-1] == outs, path
        first = path in ("hidden0/kernel", "conv1/kernel", "stem/kernel")
        if not first and not path.startswith("stage1_block0/conv/"):
            assert new[-2] <= -(-shape[-2] // 2) + 1, path
    before, after = total_row(found.before), total_row(found.after)
    assert after.flops_dense < 0.5 * before.flops_dense
    assert found.model != model
    assert type(found.model) is type(model)


@pytest.mark.parametrize("name", SMALL)
def test_channels_pruned_one_by_one(name):
    model, variables, x = random_network(name)
    masks = channel_masks(variables["params"], 0.4, exclude="head")
    found = check_same(model, variables, masks, x)
    if name in ("mlp", "lenet5"):  # nothing but the image is padded, so all that is pruned goes
        shapes = kernel_shapes(variables)
        for path, shape in kernel_shapes(found.variables).items():
            assert path == "head/kernel" or shape[-1] == round(0.4 * shapes[path][-1])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("density", [0.03, pytest.param(0.2, marks=pytest.mark.slow)])
def test_random_masks_that_kill_some_units(name, density):
    model, variables, x = random_network(name, seed=1)
    masks = rst(density, "uniform", exclude="head").init(jax.random.key(2), variables["params"])
    found = check_same(model, variables, masks, x)
    if density == 0.03:
        assert total_row(found.after).parameters < total_row(found.before).parameters


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet8"])
def test_nothing_to_remove_gives_the_same_model(name):
    model, variables, x = random_network(name)
    masks = masks_from_paths(variables["params"], {})
    found = check_same(model, variables, masks, x)
    assert found.model is model
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    assert found.before == found.after


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet8"])
def test_a_network_without_weights_keeps_one_channel_each(name):
    model, variables, x = random_network(name)
    masks = jax.tree.map(
        lambda p: jnp.zeros(p.shape, bool) if p.ndim > 1 else optax.MaskedNode(),
        variables["params"],
    )
    # Constants of 0 or less before padded convolutions, so that all can go.
    params = jax.tree.map(lambda p: p if p.ndim > 1 else -abs(p), variables["params"])
    variables = {"params": params}
    if name == "resnet8":
        stats = random_network(name)[1]["batch_stats"]
        variables["batch_stats"] = jax.tree.map(abs, stats)
        params = jax.tree.map(abs, params)
        params = {k: v for k, v in params.items()}
        for block in (params, *(v for k, v in params.items() if k.startswith("stage"))):
            for key, norm in block.items():
                if key.endswith(("bn", "bn1", "bn2")):
                    norm["bias"] = -norm["bias"]
        variables["params"] = params
    found = check_same(model, variables, masks, x)
    assert {s[-1] for p, s in kernel_shapes(found.variables).items() if p != "head/kernel"} == {1}


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_any_mlp_with_any_masks(seed, hidden, data):
    rng = np.random.default_rng(seed)
    sizes, params, masks = [3, *hidden, 2], {}, {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        layer = "head" if i == len(hidden) else f"hidden{i}"
        kernel = rng.integers(-2, 3, (n, m)).astype(np.float32)
        params[layer] = {"kernel": kernel, "bias": rng.integers(-2, 3, m).astype(np.float32)}
        density = data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
        masks[layer] = {"kernel": rng.random((n, m)) < density, "bias": optax.MaskedNode()}
    x = rng.normal(size=(8, 3)).astype(np.float32)

    def forward(params):
        h = x.astype(np.float64)
        for i in range(len(hidden)):
            h = np.maximum(h @ params[f"hidden{i}"]["kernel"] + params[f"hidden{i}"]["bias"], 0)
        return h @ params["head"]["kernel"] + params["head"]["bias"]

    found = compact(MLP(2, tuple(hidden)), {"params": params}, masks, x)
    small = jax.tree.map(np.asarray, found.variables["params"])
    expected = forward(jax.tree.map(np.asarray, apply_masks(params, masks)))
    np.testing.assert_allclose(forward(small), expected, rtol=1e-6, atol=1e-6)
    assert found.model.hidden == tuple(small[f"hidden{i}"]["bias"].size for i in range(len(hidden)))
    for i, width in enumerate(found.model.hidden):
        above = small["head" if i == len(hidden) - 1 else f"hidden{i + 1}"]["kernel"]
        own = small[f"hidden{i}"]["kernel"]
        assert width == 1 or (np.any(own, axis=0) & np.any(above, axis=1)).all()


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("resnet8", ("stage1_block0",)),
        pytest.param("resnet20", ("stage1_block0", "stage2_block2"), marks=pytest.mark.slow),
        pytest.param("resnet50", ("stage2_block1", "stage4_block2"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("how", ["scale", "kernel"])
def test_a_block_whose_branch_adds_0_drops_out(name, dead, how):
    model, variables, x = random_network(name)
    last = 3 if model.bottleneck else 2
    for block in dead:
        norm, stats = variables["params"][block][f"bn{last}"], variables["batch_stats"][block]
        norm["bias"] = 0 * norm["bias"]
        if how == "scale":
            norm["scale"] = 0 * norm["scale"]
        else:
            layer = variables["params"][block][f"conv{last}"]
            layer["kernel"] = 0 * layer["kernel"]
            stats[f"bn{last}"]["mean"] = 0 * stats[f"bn{last}"]["mean"]
    masks = all_kept(variables)
    found = check_same(model, variables, masks, x)
    assert set(variables["params"]) - set(found.variables["params"]) == set(dead)
    assert set(variables["batch_stats"]) - set(found.variables["batch_stats"]) == set(dead)
    assert list(found.model.block_names) == [b for b in model.block_names if b not in dead]
    assert " none " in str(found)
    assert total_row(found.after).flops_dense < total_row(found.before).flops_dense


def test_a_block_that_adds_a_constant_or_projects_stays():
    model, variables, x = random_network("resnet8")
    for block in ("stage1_block0", "stage2_block0"):
        norm = variables["params"][block]["bn2"]
        norm["scale"] = 0 * norm["scale"]
    projecting = variables["params"]["stage2_block0"]["bn2"]
    projecting["bias"] = 0 * projecting["bias"]
    found = check_same(model, variables, all_kept(variables), x)
    assert set(found.variables["params"]) == set(variables["params"])


def test_the_table():
    model, variables, x = random_network("mlp")
    masks = channel_masks(variables["params"], 0.5, exclude="head")
    lines = str(compact(model, variables, masks, x)).splitlines()
    assert lines[0].split() == ["parameter", "before", "after", "FLOPs", "before", "FLOPs", "after"]
    assert lines[1].split() == ["hidden0/kernel", "16x12", "16x6", "384", "192"]
    assert lines[4].split() == ["head/kernel", "7x5", "4x5", "70", "40"]
    assert lines[-1].split() == ["all", "parameters", "431", "175", "796", "312"]


def test_the_docstrings_examples_run():
    module = importlib.import_module("cka_sr_jax.models.compact")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert doctest.testmod(module).failed == 0


def all_kept(variables):
    return jax.tree.map(lambda p: np.ones(p.shape, bool), variables["params"])


def mistakes():
    """{the start of the message: a call}."""
    model, variables, x = random_network("mlp")
    masks = all_kept(variables)
    wide = create_model("wrn10-1", 5, width=2)
    other, other_variables, images = random_network("resnet8")
    no_stats = {"params": other_variables["params"]}
    other_masks = all_kept(other_variables)
    wrong = {"kernel": jnp.ones((2, 2), bool), "bias": optax.MaskedNode()}
    return {
        "the wiring of a WideResNet is not known": lambda: compact(wide, {}, {}, x),
        "pass an MLP, LeNet5, VGG or ResNet": lambda: tied_channels(wide),
        "the masks have another structure": lambda: compact(model, variables, other_masks, x),
        r"the mask of head/kernel has shape \(2, 2\)": lambda: compact(
            model, variables, {**masks, "head": wrong}, x
        ),
        "variables have nothing at params/head": lambda: compact(
            model, variables["params"], masks, x
        ),
        "variables have an array .* and the MLP": lambda: compact(
            MLP(5, (3,)), variables, masks, x
        ),
        "variables have nothing at batch_stats": lambda: compact(
            other, no_stats, other_masks, images
        ),
        "at params/hidden0/kernel and the MLP an array": lambda: compact(
            model, variables, masks, jnp.ones((1, 9))
        ),
        "call this outside of them": lambda: jax.jit(
            lambda v: compact(model, v, masks, x).variables
        )(variables),
    }


def test_mistakes_are_one_sentence():
    for message, call in mistakes().items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
