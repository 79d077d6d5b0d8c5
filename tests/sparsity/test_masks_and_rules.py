"""Masks as pytrees, and the rules that make them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from cka_sr_jax.sparsity import (
    RULES,
    apply_masks,
    density,
    epsilon_sparsity,
    layer_counts,
    leaf_paths,
    make_rule,
    rescale_kept,
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
    shapes = {path: leaf.shape for path, leaf in leaf_paths(params) if leaf.ndim >= 2}
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


def test_masks_differ_by_key_and_not_by_the_other_layers():
    params = {"a": jnp.ones((20, 20)), "b": jnp.ones((20, 20))}
    rule = rst(0.5, "uniform")
    one, two = (rule.init(jax.random.key(seed), params) for seed in (0, 1))
    assert (one["a"] != two["a"]).any()
    assert (one["a"] != one["b"]).any()
    alone = rule.init(jax.random.key(0), {"a": params["a"]})
    np.testing.assert_array_equal(alone["a"], one["a"])
    jitted = jax.jit(rule.init)(jax.random.key(0), params)
    np.testing.assert_array_equal(jitted["a"], one["a"])


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


def test_density_counts_masks_not_values():
    masks = {"w": jnp.array([[True, True], [False, False]]), "b": optax.MaskedNode()}
    params = apply_masks({"w": jnp.zeros((2, 2)), "b": jnp.ones(2)}, masks)
    assert density(masks) == 0.5
    np.testing.assert_array_equal(params["b"], jnp.ones(2))


def test_epsilon_sparsity_counts_small_weights_and_zeros():
    params = {"kernel": jnp.array([[0.0, 0.5], [-2e-3, 1e-3]]), "bias": jnp.zeros(2)}
    assert epsilon_sparsity(params, 1e-3) == 0.25
    assert epsilon_sparsity(params, 3e-3) == 0.75
    assert epsilon_sparsity({**params, "head": jnp.ones((2, 2))}, 3e-3, ["kernel"]) == 0
    with pytest.raises(ValueError, match="epsilon=0 is not positive"):
        epsilon_sparsity(params, 0)


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
        ({"w": jnp.ones((2, 3), bool)}, "another structure"),
        ({"w": jnp.ones((2, 3), bool), "b": None}, "mask of b is None"),
        ({"w": jnp.full((2, 3), 0.5), "b": optax.MaskedNode()}, "values other than 0 and 1"),
        (None, "another structure"),
    ],
)
def test_static_refuses_masks_that_do_not_fit(masks, message):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        static(masks).init(jax.random.key(0), params)


def test_masks_that_do_not_fit_are_never_applied():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    masks = {"w": jnp.ones((1, 5), bool), "b": optax.MaskedNode()}
    for apply in (apply_masks, rescale_kept):
        with pytest.raises(ValueError, match=r"mask of w has shape \(1, 5\) and the parameter"):
            apply(params, masks)


@pytest.mark.parametrize(
    ("made_with", "used_with"),
    [
        (make_rule("dense"), rst(0.2)),
        (rst(0.2), make_rule("rigl", density=0.2, end_step=9, update_every=2)),
        (make_rule("rigl", density=0.2, end_step=9, update_every=2), rst(0.2)),
        (make_rule("set", density=0.2, end_step=900), make_rule("snfs", density=0.2, end_step=900)),
    ],
)
def test_a_state_of_another_rule_is_no_dense_run(made_with, used_with):
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    state = sparsify(optax.sgd(0.1), made_with).init(params)
    with pytest.raises(ValueError, match=r"not one of this sparsify: make it with tx.init"):
        sparsify(optax.sgd(0.1), used_with).update(params, state, params)


def test_a_state_of_no_rule_or_of_other_parameters():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(3)}
    tx = sparsify(optax.sgd(0.1), rst(0.2))
    with pytest.raises(ValueError, match="not one of this sparsify"):
        tx.update(params, optax.sgd(0.1).init(params), params)
    other = tx.init({"w": jnp.ones((1, 5)), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mask of w has shape \(1, 5\)"):
        tx.update(params, other, params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_rule("rts", density=0.1), "Unknown sparsity rule 'rts': did you mean 'rst'?"),
        (lambda: make_rule("rst", densty=0.1), "'densty': did you mean 'density'?"),
        (lambda: make_rule("rst"), "Sparsity rule 'rst' needs the option 'density'"),
        (
            lambda: make_rule("dense", density=0.1),
            "Sparsity rule 'dense' has no option 'density', which .* have: it takes none",
        ),
        (lambda: make_rule("rst", density=0.0), "density=0.0 is not in"),
        (lambda: rst(0.1, "er_k").init(jax.random.key(0), linen_params()), "Unknown distribution"),
        (
            lambda: rst(0.1, exclude=("haed/kernel",)).init(jax.random.key(0), linen_params()),
            "exclude pattern 'haed/kernel' matches no parameter",
        ),
        (lambda: rst(0.1, exclude="*").init(jax.random.key(0), linen_params()), "is left to prune"),
        (lambda: rst(0.1).init(jax.random.key(0), {"b": jnp.ones(3)}), "is left to prune"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_every_rule_is_reached_by_its_name():
    names = "channels dense gmp granet mest rigl rst set snfs static"
    assert sorted(RULES) == names.split()


def test_rescaled_weights_keep_the_signal():
    """In each unit the kept weights have the norm that all its weights had."""
    rng = np.random.default_rng(0)
    params = {"conv": rng.standard_normal((3, 3, 4, 5)).astype(np.float32), "bias": np.ones(5)}
    masks = {"conv": jnp.asarray(rng.random((3, 3, 4, 5)) < 0.3).at[..., 2].set(False)}
    masks["bias"] = optax.MaskedNode()
    scaled = rescale_kept(params, masks)
    for unit in range(5):
        kept = np.asarray(masks["conv"][..., unit])
        weights = params["conv"][..., unit]
        factor = np.linalg.norm(weights) / np.linalg.norm(weights[kept]) if kept.any() else 0
        expected = np.where(kept, weights * factor, 0)
        np.testing.assert_allclose(scaled["conv"][..., unit], expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled["bias"], params["bias"])
    # A unit's output has the variance of the dense one's, whatever its density, also where the
    # largest weights are kept.
    x = rng.standard_normal((20_000, 400)).astype(np.float32)
    w = rng.standard_normal((400, 3)).astype(np.float32) / 20
    random = jnp.asarray(rng.random((400, 3)) < np.array([0.05, 0.3, 1.0]))
    for mask in (random, jnp.abs(w) > 0.1):
        spread = np.std(x @ np.asarray(rescale_kept({"w": w}, {"w": mask})["w"]), axis=0)
        np.testing.assert_allclose(spread, 1, atol=0.1)
