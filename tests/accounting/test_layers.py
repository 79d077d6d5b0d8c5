"""Rows of parameters, densities and FLOPs, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from cka_sr_jax.accounting import fold_vectors, layer_rows, total_row


def tree():
    """Two kernels and a bias; the first kernel keeps 3 of 8 weights."""
    mask = np.zeros((4, 2), bool)
    mask[:3, 0] = True
    params = {
        "block10": {"kernel": jnp.ones((4, 2))},
        "block2": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    }
    dense = optax.MaskedNode()
    masks = {"block10": {"kernel": mask}, "block2": {"kernel": dense, "bias": dense}}
    return params, masks


def test_rows_count_parameters_and_flops():
    rows = {row.path: row for row in layer_rows(*tree(), {"block10/kernel": 5})}
    # 8 weights at 5 positions, 2 FLOPs each; 3 of them kept.
    assert rows["block10/kernel"] == ("block10/kernel", (4, 2), 8, 3, 3 / 8, 80, 30, "matrix 4 x 2")
    assert rows["block2/kernel"] == ("block2/kernel", (2, 3), 6, 6, 1.0, 0, 0, "")
    assert rows["block2/bias"] == ("block2/bias", (3,), 3, 3, 1.0, 0, 0, "")


def test_total_sums_every_row():
    total = total_row(layer_rows(*tree(), {"block10/kernel": 5, "block2/kernel": 1}))
    assert total == ("total", (), 17, 12, 12 / 17, 92, 42, "")
    assert total_row([]) == ("total", (), 0, 0, 1.0, 0, 0, "")


def test_vectors_are_in_one_row_however_many_axes_they_have():
    shapes = {
        "query/kernel": (6, 2, 3),
        "query/bias": (2, 3),
        "block/up/kernel": (4, 6, 8),
        "block/up/bias": (4, 8),
        "block/norm/scale": (4, 6),
        "embed/embedding": (9, 6),
        "head/bias": (5,),
    }
    params = unflatten_dict({path: np.zeros(shape) for path, shape in shapes.items()}, sep="/")
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    *kernels, vectors = fold_vectors(layer_rows(params, masks, {}))
    assert {row.path for row in kernels} == {"query/kernel", "block/up/kernel", "embed/embedding"}
    assert vectors[:3] == ("vectors (4)", (), 6 + 32 + 24 + 5)


def test_rows_say_what_the_masks_take_a_parameter_for():
    params = {"scan": {"kernel": jnp.ones((8, 4, 6))}, "query": {"kernel": jnp.ones((4, 2, 3))}}
    masks = {name: {"kernel": leaf["kernel"] > 0} for name, leaf in params.items()}
    query, scan = layer_rows(params, masks, {}, stacked={"scan": 1})
    assert (query.pruned_as, scan.pruned_as) == ("matrix 4 x 6", "8 layers: matrix 4 x 6")


def test_rows_are_in_natural_order():
    names = ["stage1_block10", "stage1_block2", "stage10_block0", "stage2_block0", "7", "head"]
    params = {name: {"kernel": jnp.ones((1, 1))} for name in names}
    masks = {name: {"kernel": optax.MaskedNode()} for name in names}
    assert [row.path.removesuffix("/kernel") for row in layer_rows(params, masks, {})] == [
        "7", "head", "stage1_block2", "stage1_block10", "stage2_block0", "stage10_block0",
    ]  # fmt: skip


def test_rows_follow_the_forward_pass():
    """Kernels as they are applied, and other arrays at the first kernel of their module."""
    names = ["a_head/bias", "a_head/kernel", "block10/dense/kernel", "block2/conv/kernel",
             "block2/norm/scale", "stem/kernel", "tokens"]  # fmt: skip
    params = unflatten_dict({tuple(name.split("/")): jnp.ones((1, 1)) for name in names})
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    applied = ["stem/kernel", "block2/conv/kernel", "block10/dense/kernel", "a_head/kernel"]
    rows = layer_rows(params, masks, dict.fromkeys(applied, 1))
    assert [row.path for row in rows] == [
        "stem/kernel", "tokens", "block2/conv/kernel", "block2/norm/scale", "block10/dense/kernel",
        "a_head/bias", "a_head/kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_density_is_counted_on_masks_not_on_values(value):
    params = {"kernel": jnp.full((2, 2), value)}
    (row,) = layer_rows(params, {"kernel": jnp.array([[True, True], [True, False]])}, {})
    assert (row.kept, row.density) == (3, 0.75)


def test_mistakes_are_errors():
    params, masks = tree()
    with pytest.raises(ValueError, match="'head/kernel', and the parameters have no such path"):
        layer_rows(params, masks, {"head/kernel": 1})
    with pytest.raises(ValueError, match=r"shape \(2, 4\) and its array \(4, 2\)"):
        layer_rows(params, {**masks, "block10": {"kernel": np.ones((2, 4), bool)}}, {})
    with pytest.raises(ValueError):  # noqa: PT011 - JAX's words
        layer_rows(params, {"block10": masks["block10"]}, {})
