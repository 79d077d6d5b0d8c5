"""Layer-wise densities against the published table and their own definitions."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from cka_sr_jax.sparsity import (
    DISTRIBUTIONS,
    erk,
    erk_plus,
    layer_counts,
    layer_densities,
    make_rule,
    uniform_plus,
)


def resnet20_shapes(num_classes):
    """Kernel shapes of ResNet-20 with projection shortcuts, written out by hand."""
    shapes = {"stem": (3, 3, 3, 16)}
    width = 16
    for stage, out in enumerate((16, 32, 64), start=1):
        for block in range(3):
            shapes[f"{stage}.{block}.conv1"] = (3, 3, width, out)
            shapes[f"{stage}.{block}.conv2"] = (3, 3, out, out)
            if width != out:
                shapes[f"{stage}.{block}.shortcut"] = (1, 1, width, out)
            width = out
    return shapes | {"head": (64, num_classes)}


# The layer kinds in the order of facts: stem, 16-16, 16-32, 32-32, shortcut, 32-64, 64-64, ...
KINDS = ("stem", "1.0.conv1", "2.0.conv1", "2.1.conv1", "2.0.shortcut", "3.0.conv1", "3.1.conv1")
KINDS += ("3.0.shortcut", "head")
ERK_TABLE = {
    (100, 0.05): (0.4598, 0.1310, 0.0931, 0.0603, 0.7759, 0.0440, 0.0289, 0.3802, 0.2036),
    (100, 0.10): (0.9293, 0.2648, 0.1882, 0.1220, 1.0000, 0.0889, 0.0584, 0.7684, 0.4115),
    (100, 0.02): (0.1839, 0.0524, 0.0372, 0.0241, 0.3104, 0.0176, 0.0116, 0.1521, 0.0814),
    (10, 0.05): (0.4748, 0.1353, 0.0961, 0.0623, 0.8012, 0.0454, 0.0298, 0.3926, 0.9486),
}


@pytest.mark.parametrize(("classes", "density"), ERK_TABLE)
def test_erk_table_of_resnet20(classes, density):
    shapes = resnet20_shapes(classes)
    assert sum(map(math.prod, shapes.values())) == {100: 276_656, 10: 270_896}[classes]
    densities = erk(shapes, density)
    actual = [densities[kind] for kind in KINDS]
    np.testing.assert_allclose(actual, ERK_TABLE[classes, density], atol=5.1e-5)


shape_lists = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 64), st.integers(1, 64)),
        st.tuples(st.just(3), st.just(3), st.integers(1, 32), st.integers(1, 32)),
    ),
    min_size=1,
    max_size=6,
)


@given(shape_lists, st.floats(1e-3, 1), st.sampled_from(["uniform", "er", "erk"]))
def test_the_global_density_is_met(shapes, density, name):
    shapes = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    densities = layer_densities(shapes, density, name)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    kept = sum(densities[path] * sizes[path] for path in shapes)
    np.testing.assert_allclose(kept, density * sum(sizes.values()), rtol=1e-9)
    assert all(0 < d <= 1 + 1e-12 for d in densities.values())
    counts = layer_counts(shapes, density, name)
    for path, count in counts.items():
        assert 1 <= count <= sizes[path]
        assert abs(count - densities[path] * sizes[path]) <= 1


def test_er_differs_from_erk_only_in_convolutions():
    shapes = {"a": (20, 30), "b": (30, 50)}
    assert layer_densities(shapes, 0.1, "er") == layer_densities(shapes, 0.1, "erk")
    shapes = {"conv": (3, 3, 8, 16), "fc": (100, 10)}
    densities = layer_densities(shapes, 0.05, "er")
    ratio = (24 / 128) / (110 / 1000)
    np.testing.assert_allclose(densities["conv"] / densities["fc"], ratio)


@pytest.mark.parametrize("name", ["uniform_plus", "erk_plus"])
def test_plus_distributions_fix_their_layers_and_meet_the_density(name):
    shapes = resnet20_shapes(10)
    densities = layer_densities(shapes, 0.1, name)
    kept = sum(densities[path] * math.prod(shapes[path]) for path in shapes)
    np.testing.assert_allclose(kept, 0.1 * sum(map(math.prod, shapes.values())))
    if name == "uniform_plus":
        assert densities["stem"] == 1
        assert densities["head"] == 0.2
        rest = {densities[p] for p in shapes if p not in ("stem", "head")}
        assert len(rest) == 1
    else:
        assert densities["head"] == 1
        without = {path: shape for path, shape in shapes.items() if path != "head"}
        budget = 0.1 * sum(map(math.prod, shapes.values())) - 640
        expected = erk(without, budget / sum(map(math.prod, without.values())))
        assert all(densities[path] == expected[path] for path in without)


def test_uniform_plus_keeps_a_dense_enough_head_at_the_density():
    assert layer_densities(resnet20_shapes(10), 0.5, "uniform_plus")["head"] == 0.5


def test_named_layers_replace_the_guess():
    shapes = {"embed": (50, 20), "mid": (20, 20), "out": (20, 5)}
    with pytest.raises(ValueError, match="head layer is not clear: 3 candidates"):
        erk_plus()(shapes, 0.3)
    assert erk_plus(head="out", head_density=0.7)(shapes, 0.3)["out"] == 0.7
    conv = {"a": (3, 3, 1, 8), "b": (3, 3, 1, 8), "c": (3, 3, 16, 16), "fc": (8, 2)}
    with pytest.raises(ValueError, match="first layer is not clear: 2 candidates"):
        uniform_plus()(conv, 0.5)
    assert uniform_plus(first="b")(conv, 0.5)["b"] == 1


def test_a_mapping_of_patterns():
    shapes = {"stage1/a/kernel": (5, 5), "stage2/a/kernel": (5, 5), "head/kernel": (5, 2)}
    densities = layer_densities(shapes, 0.05, {"head/kernel": 1.0, "stage1*": 0.2, "*": 0.1})
    assert list(densities.values()) == [0.2, 0.1, 1.0]
    assert layer_densities(shapes, 0.05, lambda s, d: dict.fromkeys(s, d / 2))["head/kernel"] == (
        0.025
    )


@pytest.mark.parametrize(
    ("density", "distribution", "message"),
    [
        (0.0, "erk", r"density=0.0 is not in \(0, 1\]"),
        (1.5, "erk", r"density=1.5 is not in \(0, 1\]"),
        (float("nan"), "erk", "density=nan is not in"),
        (0.1, "erkk", "Unknown distribution 'erkk': did you mean 'erk'?"),
        (0.1, {"stem": 0.5}, "no pattern of the distribution matches layer '1.0.conv1'"),
        (0.1, {"*": 2.0}, "density of stem=2.0 is not in"),
        (0.001, "uniform_plus", "cannot reach density 0.001"),
        (0.002, "erk_plus", "cannot reach density 0.002"),
    ],
)
def test_bad_input_is_one_sentence(density, distribution, message):
    with pytest.raises(ValueError, match=message) as error:
        layer_densities(resnet20_shapes(10), density, distribution)
    assert "\n" not in str(error.value)


def test_all_names_are_there():
    assert sorted(DISTRIBUTIONS) == ["er", "erk", "erk_plus", "uniform", "uniform_plus"]


def test_an_unknown_distribution_is_named_at_init():
    options = {"density": 0.1, "end_step": 100, "distribution": "ekr"}
    for name in ("gmp", "granet", "rigl"):
        with pytest.raises(ValueError, match="Unknown distribution 'ekr'"):
            make_rule(name, **options).init(jax.random.key(0), {"w": jnp.ones((4, 5))})
