"""Paths, patterns and the natural order: the one dialect of all options."""

import itertools

import jax.numpy as jnp
import pytest
from flax import nnx
from flax.core import FrozenDict

from cka_sr_jax._paths import leaf_paths, matches, natural_key


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"b": {"kernel": 1, "bias": 2}, "a": [3, 4]}, ["a/0", "a/1", "b/bias", "b/kernel"]),
        (FrozenDict({"head": {"kernel": 1}}), ["head/kernel"]),
        ({"mlp/~/linear_0": {"w": 1}}, ["mlp/~/linear_0/w"]),
        ({}, []),
    ],
)
def test_paths_join_the_names_in_the_order_of_the_tree(tree, paths):
    assert [path for path, _ in leaf_paths(tree)] == paths


def test_an_nnx_variable_is_a_leaf():
    class Net(nnx.Module):
        def __init__(self):
            self.layers = getattr(nnx, "List", list)(
                nnx.Linear(2, 3, rngs=nnx.Rngs(0)) for _ in range(2)
            )

    state = nnx.state(Net(), nnx.Param)
    expected = [f"layers/{i}/{name}" for i, name in itertools.product((0, 1), ("bias", "kernel"))]
    assert [path for path, _ in leaf_paths(state)] == expected
    assert all(isinstance(leaf, jnp.ndarray) for _, leaf in leaf_paths(state))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("head/kernel", "head/kernel"),
        ("head/kernel", "decoder/head/kernel"),
        ("head", "head/kernel"),
        ("head", "decoder/head/kernel"),
        ("kernel", "head/kernel"),
        ("stage1*", "stage1_block0/conv1/kernel"),
        ("conv*", "conv/kernel"),
        ("mid/*", "mid/kernel"),
        ("blocks/*", "blocks/3/attention/query/kernel"),
        ("blocks/*/__call__", "blocks/3/__call__"),
        ("hidden[1-9]*", "hidden10"),
        ("/head", "head/kernel"),
        ("/head/kernel", "head/kernel"),
        ("*", "a/b/c"),
        ("a", "a"),
    ],
)
def test_patterns_that_match(pattern, path):
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("head", "header/kernel"),
        ("ead/kernel", "head/kernel"),
        ("a/c", "a/b/c"),
        ("a*c", "a/b/c"),  # a star stays between two slashes
        ("Block_*/__call__", "Block_0/Dense_0/__call__"),
        ("a/b/c", "b/c"),
        ("/head", "decoder/head/kernel"),
        ("Head", "head"),
        ("layers_1", "layers_10"),
        ("", "head"),
        ("head/", "head/kernel"),
    ],
)
def test_patterns_that_do_not_match(pattern, path):
    assert not matches(pattern, path)


def test_natural_order_counts_numbers_part_by_part():
    ordered = ["7", "a/2", "a/10", "a1", "a1_b2", "a1_b10", "a2/b", "a10/b", "head"]
    for shuffled in (ordered[::-1], sorted(ordered)):
        assert sorted(shuffled, key=natural_key) == ordered
