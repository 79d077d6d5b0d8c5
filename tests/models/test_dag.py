"""DAG: the residual network it starts as, its graphs, and what removed edges change."""

import doctest
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.models import DAG, create_model, edge_matrices, live_nodes, remove_edges
from cka_sr_jax.models.dag import random_graph
from cka_sr_jax.sparsity import layers_of
from tests.models.shapes import KEY, count, init_shapes

IMAGE = (8, 8, 3)


def with_random_values(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = init_shapes(model, IMAGE)
    return jax.tree.map(lambda v: rng.uniform(0.2, 1, v.shape).astype(np.float32), shapes)


def images(n=2):
    return np.random.default_rng(1).normal(size=(n, *IMAGE)).astype(np.float32)


class Residual(nn.Module):
    """h <- h + conv(relu(bn(h))), written without any graph."""

    nodes: int
    width: int

    @nn.compact
    def __call__(self, x):
        def unit(h, name, width, stride=1):
            h = nn.relu(nn.BatchNorm(True, epsilon=1e-5, name=f"{name}_bn")(h))
            conv = nn.Conv(width, (3, 3), stride, 1, use_bias=False, name=f"{name}_conv")
            return conv(h)

        h = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="stem")(x)
        for stage in (1, 2, 3):
            if stage > 1:
                h = unit(h, f"stage{stage}_entry", self.width * 2 ** (stage - 1), 2)
            for j in range(1, self.nodes + 1):
                h = h + unit(h, f"stage{stage}_node{j}", h.shape[-1])
        h = nn.relu(nn.BatchNorm(True, epsilon=1e-5, name="final_bn")(h)).mean((1, 2))
        return nn.Dense(5, name="head")(h)


@pytest.mark.parametrize("graph", ["learned", "residual"])
def test_the_complete_graph_of_ones_is_the_residual_network(graph):
    model = create_model("dag3", 5, width=4, graph=graph)
    variables = with_random_values(model)
    for name in [name for name in variables["params"] if name.endswith("_edges")]:
        variables["params"][name] = np.ones_like(variables["params"][name])
    flat = {"params": {}, "batch_stats": {}}
    for kind in flat:
        for name, module in variables[kind].items():
            if name.endswith("_edges"):
                continue
            if "bn" in module or "conv" in module:
                flat[kind] |= {f"{name}_{part}": module[part] for part in module}
            else:
                flat[kind][name] = module
    expected = jax.jit(lambda: Residual(3, 4).apply(flat, images()))()
    found = jax.jit(lambda: model.apply(variables, images(), train=False))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_training_starts_from_the_residual_network():
    params = jax.jit(lambda: DAG(5, 2, 4).init(KEY, images(), train=False))()["params"]
    for matrix in edge_matrices(params).values():
        np.testing.assert_array_equal(matrix, np.tril(np.ones((3, 3))))


def recorded(model, variables):
    """(features, {module: its output})."""
    _, sown = model.apply(
        variables, images(), train=False, mutable=["features", "intermediates"],
        capture_intermediates=lambda module, _: module.name is not None,
    )  # fmt: skip
    outputs = {k: v["__call__"][0] for k, v in sown["intermediates"].items() if k != "__call__"}
    return sown["features"], outputs


def test_a_stage_is_a_weighted_sum_of_all_before():
    """Against a loop over the matrix, from the recorded outputs of the nodes."""
    model = DAG(5, 3, 4)
    variables = with_random_values(model)
    features, seen = recorded(model, variables)
    matrices = edge_matrices(variables["params"])
    for stage in (1, 2, 3):
        first = seen["stem"] if stage == 1 else seen[f"stage{stage}_entry"]
        outputs = [first, *(seen[f"stage{stage}_node{j}"] for j in (1, 2, 3))]
        for j, found in enumerate(features[f"stage{stage}"]):
            expected = sum(matrices[f"stage{stage}"][j, i] * outputs[i] for i in range(j + 1))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_penalty_is_the_weighted_l1_norm(adaptive):
    model = DAG(5, 2, 4, edge_penalty=0.25, adaptive=adaptive)
    variables = with_random_values(model)
    variables["params"]["stage1_edges"] = -variables["params"]["stage1_edges"]
    _, sown = model.apply(variables, images(), train=True, mutable=["losses", "batch_stats"])
    expected = sum(
        abs(float(matrix[j, i])) * (np.log2(2 + j) if adaptive else 1)
        for matrix in edge_matrices(variables["params"]).values()
        for j in range(3)
        for i in range(j + 1)
    )
    assert sown["losses"]["edges"][0] == pytest.approx(0.25 * expected, rel=1e-5)
    for other in (model.clone(edge_penalty=0.0), model.clone(graph="random")):
        _, sown = other.apply(variables, images(), train=True, mutable=["losses", "batch_stats"])
        assert "losses" not in sown


def test_a_removed_edge_changes_its_sum_by_its_weight_times_its_source():
    model = DAG(5, 3, 4)
    variables = with_random_values(model)
    weights = variables["params"]["stage3_edges"]
    small = 8  # of node 2 to the output, in the last stage
    weights[:] = 1
    weights[small] = 0.125
    removed = {**variables, "params": remove_edges(variables["params"], 0.13)}
    assert not removed["params"]["stage3_edges"][small]
    before, outputs = recorded(model, variables)
    after, _ = recorded(model, removed)
    for same, sums in zip(after["stage3"][:-1], before["stage3"][:-1], strict=True):
        np.testing.assert_array_equal(same, sums)
    change = before["stage3"][-1] - after["stage3"][-1]
    np.testing.assert_allclose(change, 0.125 * outputs["stage3_node2"], rtol=1e-3, atol=1e-3)


def test_the_threshold_is_a_share_of_the_strongest_edge_to_a_node():
    edges = jnp.array([0.001, 0.1, -2.0, 1.0, -0.5, 0.09])
    removed = remove_edges({"stage1_edges": edges, "head": {"kernel": jnp.ones(1)}}, 0.1)
    np.testing.assert_allclose(removed["stage1_edges"], [0.001, 0, -2.0, 1.0, -0.5, 0])
    assert removed["head"]["kernel"].tolist() == [1]


@given(st.integers(0, 2**31), st.floats(0.001, 1000))
def test_what_is_removed_does_not_depend_on_the_scale_of_a_nodes_edges(seed, scale):
    edges = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    scaled = np.where(np.arange(6) >= 3, np.float32(scale), 1) * edges  # those to the output
    left = [
        np.asarray(remove_edges({"stage1_edges": values}, 0.3)["stage1_edges"]) != 0
        for values in (edges, scaled)
    ]
    np.testing.assert_array_equal(*left)
    assert [left[0][s].any() for s in (slice(0, 1), slice(1, 3), slice(3, 6))] == [True] * 3


@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0.05, 1))
def test_every_node_of_a_random_graph_is_reached_and_leads_on(seed, nodes, share):
    there = random_graph(nodes, share, seed)
    assert there.shape == (nodes + 1, nodes + 1)
    assert not np.triu(there, 1).any()
    assert there.any(0).all()
    assert there.any(1).all()
    if share == 1:
        assert there.sum() == (nodes + 1) * (nodes + 2) // 2


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_live_nodes_are_on_a_path_found_by_walking(seed, nodes):
    rng = np.random.default_rng(seed)
    size = nodes + 1
    edges = np.tril(rng.random((size, size)) < 0.4)
    vector = edges[np.tril_indices(size)].astype(np.float32)

    def walk(node, path, found):
        if node == size:
            found.update(path)
        for j in range(node + 1, size + 1):
            if edges[j - 1, node]:
                walk(j, [*path, j], found)

    found = set()
    walk(0, [], found)
    assert live_nodes({"stage1_edges": vector})["stage1"] == sorted(found - {size})


def test_a_dead_node_changes_nothing():
    model = DAG(5, 2, 4)
    variables = with_random_values(model)
    edges = variables["params"]["stage2_edges"]
    edges[[2, 4]] = 0  # node 1 to node 2 and to the output
    assert live_nodes(variables["params"])["stage2"] == [2]
    expected = model.apply(variables, images(), train=False)
    variables["params"]["stage2_node1"]["conv"]["kernel"][:] = 1e3
    np.testing.assert_array_equal(model.apply(variables, images(), train=False), expected)


def test_names_sizes_and_what_is_pruned():
    model = create_model("dag4", 10)
    variables = init_shapes(model, (32, 32, 3))
    nodes = 9 * 4 * sum(w * w for w in (16, 32, 64)) + 4 * 2 * (16 + 32 + 64)
    entries = 9 * (16 * 32 + 32 * 64) + 2 * (16 + 32)
    assert count(variables) == 9 * 3 * 16 + nodes + entries + 3 * 15 + 2 * 64 + 650
    pruned = layers_of(variables["params"])
    assert not [path for path in pruned if path.endswith("_edges")]
    assert len(pruned) == 1 + 12 + 2 + 1
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    positions = kernel_positions(model, variables, image)
    assert positions["stage3_node4/conv/kernel"] == 8 * 8


def test_mistakes_are_one_sentence():
    for options, message in [
        ({"nodes": 0}, "nodes=0: expected 1 or more"),
        ({"width": 0}, "width=0: expected 1 or more"),
        ({"graph": "complete"}, "Unknown graph 'complete'"),
        ({"edge_penalty": -1.0}, "edge_penalty=-1.0: expected a number of 0 or more"),
        ({"edge_share": 0.0}, r"edge_share=0.0: expected a share in \(0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            DAG(10, **options)
    with pytest.raises(ValueError, match="Unknown model 'dag0', since nodes=0"):
        create_model("dag0", 10)
    with pytest.raises(ValueError, match="graph_seed=-1: expected 0 or more"):
        DAG(10, graph="random", graph_seed=-1)
    for weights in (jnp.ones(4), jnp.array([1.0, np.nan, 1.0])):
        with pytest.raises(ValueError, match=r"stage1_edges of shape .* are no finite weights"):
            live_nodes({"stage1_edges": weights})
    for call in (edge_matrices, live_nodes, lambda p: remove_edges(p, 0.1)):
        with pytest.raises(ValueError, match="have no edges"):
            call({"head": {"kernel": jnp.ones(1)}})
    for threshold in (-1, 1, float("nan")):
        with pytest.raises(
            ValueError, match=r"threshold=.*: expected a share of the strongest edge"
        ):
            remove_edges({"stage1_edges": jnp.ones(1)}, threshold)


def test_the_docstrings_examples_run():
    module = importlib.import_module("cka_sr_jax.models.dag")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert doctest.testmod(module).failed == 0
