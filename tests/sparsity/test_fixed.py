"""No masks, given masks, random masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from cka_sr_jax.sparsity import (
    apply_masks,
    density,
    layer_counts,
    leaf_paths,
    make_rule,
    rst,
    sparsify,
    static,
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).reshape(len(x), -1)
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(7, name="mid")(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)


def linen_params():
    return Net().init(jax.random.key(0), jnp.ones((2, 6, 6, 1)))["params"]


def trees():
    params = linen_params()
    return {
        "dict": params,
        "FrozenDict": FrozenDict(params),
        "nnx.State": nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param),
        "list": [jnp.ones((5, 6)), {"bias": jnp.ones(3), "kernel": jnp.ones((6, 3))}],
    }


@pytest.mark.parametrize("kind", trees())
@pytest.mark.parametrize("exact", [True, False])
def test_rst_masks_on_every_kind_of_tree(kind, exact):
    params = trees()[kind]
    masks = rst(0.3, exact=exact).init(jax.random.key(1), params)
    shapes = {path: leaf.shape for path, leaf in leaf_paths(params) if path.endswith("kernel")}
    found = dict(leaf_paths(masks))
    assert found.keys() == shapes.keys()
    if exact:
        counts = layer_counts(shapes, 0.3, "erk")
        assert {path: int(mask.sum()) for path, mask in found.items()} == counts
        total = sum(np.prod(shape) for shape in shapes.values())
        np.testing.assert_allclose(density(masks), sum(counts.values()) / total, rtol=1e-6)
    assert all(mask.dtype == bool for mask in found.values())
    assert all(mask.shape == shapes[path] for path, mask in found.items())
    masked = apply_masks(params, masks)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    for (path, before), (_, after) in zip(leaf_paths(params), leaf_paths(masked), strict=True):
        expected = np.where(found[path], before, 0) if path in found else before
        np.testing.assert_array_equal(after, expected)


def test_bernoulli_masks_have_the_density_on_average():
    params = {"w": jnp.ones((200, 200))}
    masks = rst(0.1, "uniform", exact=False).init(jax.random.key(0), params)
    # 40,000 draws: 5 standard deviations of the mean are 0.0075.
    assert abs(density(masks) - 0.1) < 0.0075
    assert int(masks["w"].sum()) != 4000


def test_exclude_and_dense():
    params = linen_params()
    masks = rst(0.2, exclude=("head/kernel", "conv*")).init(jax.random.key(0), params)
    assert [path for path, _ in leaf_paths(masks)] == ["mid/kernel"]
    assert isinstance(masks["head"]["kernel"], optax.MaskedNode)
    assert isinstance(masks["mid"]["bias"], optax.MaskedNode)
    assert [
        p for p, _ in leaf_paths(rst(0.2, exclude="mid/*").init(jax.random.key(0), params))
    ] == [
        "conv/kernel",
        "head/kernel",
    ]
    none = make_rule("dense").init(jax.random.key(0), params)
    assert jax.tree.leaves(none) == []
    assert density(none) == 1


def test_static_takes_masks_from_anywhere():
    params = linen_params()
    given = jax.tree.map(
        lambda p: np.ones(p.shape, np.int8) if p.ndim > 1 else optax.MaskedNode(), params
    )
    given["head"]["kernel"][0] = 0
    masks = static(given).init(jax.random.key(0), params)
    assert masks["head"]["kernel"].dtype == bool
    assert not masks["head"]["kernel"][0].any()
    assert masks["head"]["kernel"][1:].all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": jnp.ones((3, 2), bool), "b": optax.MaskedNode()}, r"mask of w has shape \(3, 2\)"),
        ({"v": jnp.ones((2, 3), bool)}, "the masks have v, which the parameters lack"),
        (jnp.ones((2, 3), bool), "which the parameters lack"),
        ({"w": jnp.full((2, 3), 0.5), "b": optax.MaskedNode()}, "values other than 0 and 1"),
    ],
)
def test_static_refuses_masks_that_do_not_fit(masks, message):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        static(masks).init(jax.random.key(0), params)


@pytest.mark.parametrize("masks", [{"w": jnp.ones((2, 3), bool)}, {}, None])
def test_masks_may_be_a_part_of_the_tree(masks):
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3)), "b": jnp.ones(3)}
    found = static(masks).init(jax.random.key(0), params)
    assert dict(leaf_paths(found)).keys() == (masks or {}).keys()
    assert found["v"] == optax.MaskedNode()


@pytest.mark.parametrize(
    ("rule", "params", "message"),
    [
        (rst(0.1, "er_k"), linen_params(), "Unknown distribution"),
        (
            rst(0.1, exclude=("haed/kernel",)),
            linen_params(),
            "exclude pattern 'haed/kernel' matches no parameter that would be pruned: use a path",
        ),
        (rst(0.1, exclude="*"), linen_params(), "is left to prune"),
        (rst(0.1), {"b": jnp.ones(3)}, "is left to prune"),
    ],
)
def test_bad_input_is_one_sentence(rule, params, message):
    with pytest.raises(ValueError, match=message) as error:
        rule.init(jax.random.key(0), params)
    assert "\n" not in str(error.value)


def test_static_takes_masks_of_numbers():
    masks = {"w": np.eye(3)}
    found = static(masks).init(jax.random.key(0), {"w": jnp.ones((3, 3))})
    np.testing.assert_array_equal(found["w"], np.eye(3, dtype=bool))


def test_a_step_that_donates_its_state_leaves_the_given_masks():
    params = {"w": jnp.ones((6, 5))}
    masks = {"w": jnp.arange(30).reshape(6, 5) % 3 == 0}
    tx = sparsify(optax.sgd(0.1), static(masks))
    update = jax.jit(tx.update, donate_argnums=1)
    update(params, tx.init(params), params)
    assert not masks["w"].is_deleted()
    tx.init(params)
