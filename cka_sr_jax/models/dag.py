"""Networks whose stages are learned graphs (Yuan et al. 2020, arXiv 2008.08261).

In a stage every node takes a weighted sum of all that comes before it, and the weights of these
edges are trained. A penalty makes them sparse, and small ones are removed: what is left is the
stage's topology. We had the paper's abstract alone. That nodes sum weighted inputs and that the
penalty is uniform or adaptive is from memory; the node, the initial weights and the adaptive
factor are inferred here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from cka_sr_jax._errors import unknown
from cka_sr_jax.models.layers import (
    at_least_float32,
    batch_norm,
    convolution,
    kaiming_normal,
    sow_feature,
)

Graph = Literal["learned", "residual", "random"]
GRAPHS: tuple[Graph, ...] = ("learned", "residual", "random")
STAGES = (1, 2, 3)


class Node(nn.Module):
    """conv(relu(bn(x))), a 3x3 convolution."""

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The node's output; `train` normalizes by the batch's own statistics."""
        y = nn.relu(batch_norm(use_running_average=not train, dtype=self.dtype, name="bn")(x))
        return convolution(
            self.features, (3, 3), strides=self.stride, padding=1, dtype=self.dtype, name="conv"
        )(y)


class DAG(nn.Module):
    """Stem, three stages of `nodes` nodes each, BatchNorm, ReLU, global average pooling, "head".

    With x_0 the stage's input, node j gives, and the stage puts out,

      x_j = F_j(sum_{i < j} a_ij x_i),   j = 1, ..., n,       sum_{i <= n} a_i,n+1 x_i.

    With every a_ij = 1, where training starts, that is the residual network h_j = h_{j-1} +
    F_j(h_{j-1}) of preactivated convolutions, h_j being the sum of x_0 to x_j. The other stages
    start with a convolution of stride 2 and twice the filters, "stage2_entry". Edge weights are the
    vectors "stage1_edges", ..., which no rule prunes; `edge_matrices` shows them.

    Features: stages "stage1", "stage2", "stage3" of the sums that the nodes take, and of the
    stage's output.

    Args:
      nodes: of each stage.
      width: filters of the stem and the first stage.
      graph: "learned" edges; "residual", all of them fixed to 1; or "random", where each is there
        with probability `edge_share`, fixed to 1, and every node has an edge to and from it.
      edge_penalty: r of r sum_ij c_ij |a_ij| over learned edges in "losses", which is to be added
        to the loss.
      adaptive: c_ij = log2(1 + j), so that nodes of many edges lose more of them; False: c_ij = 1.
      edge_share, graph_seed: of the random graph.

    Raises:
      ValueError: less than one node or filter; an unknown graph; a negative penalty; a share that
        is not in (0, 1].
    """

    num_classes: int
    nodes: int = 4
    width: int = 16
    graph: Graph = "learned"
    edge_penalty: float = 0.0
    adaptive: bool = False
    edge_share: float = 0.5
    graph_seed: int = 0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        for name in ("nodes", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more, such as 4.")
        if self.graph not in GRAPHS:
            raise ValueError(unknown("graph", self.graph, GRAPHS))
        if not (self.edge_penalty >= 0 and math.isfinite(self.edge_penalty)):
            raise ValueError(f"edge_penalty={self.edge_penalty}: expected a number of 0 or more.")
        if self.graph_seed < 0:
            raise ValueError(f"graph_seed={self.graph_seed}: expected 0 or more.")
        if not 0 < self.edge_share <= 1:
            raise ValueError(f"edge_share={self.edge_share}: expected a share in (0, 1].")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"], train: bool) -> Float[Array, "b k"]:
        """Logits; `train` normalizes by the batch's own statistics, else by the running ones."""
        x = convolution(self.width, (3, 3), padding=1, dtype=self.dtype, name="stem")(x)
        node = partial(Node, dtype=self.dtype)
        penalty = jnp.zeros(())
        for stage in STAGES:
            width = self.width * 2 ** (stage - 1)
            if stage > 1:
                x = node(width, stride=2, name=f"stage{stage}_entry")(x, train)
            weights = self._edges(stage)
            outputs, start = [x], 0
            for j in range(1, self.nodes + 2):
                edges = weights[start : start + j]
                start += j
                mixed = sum(
                    (a.astype(x.dtype) * y for a, y in zip(edges, outputs, strict=True)),
                    start=jnp.zeros_like(x),
                )
                sow_feature(self, f"stage{stage}", mixed)
                if j <= self.nodes:
                    outputs.append(node(width, name=f"stage{stage}_node{j}")(mixed, train))
                penalty += (math.log2(1 + j) if self.adaptive else 1.0) * jnp.sum(jnp.abs(edges))
            x = mixed
        if self.edge_penalty and self.graph == "learned" and not self.is_initializing():
            self.sow("losses", "edges", self.edge_penalty * penalty)
        norm = batch_norm(use_running_average=not train, dtype=self.dtype, name="final_bn")
        x = nn.relu(norm(x)).mean(axis=(1, 2))
        x = nn.Dense(self.num_classes, kernel_init=kaiming_normal, dtype=self.dtype, name="head")(x)
        return at_least_float32(x)

    def _edges(self, stage: int) -> Array:
        """[(n + 1)(n + 2) / 2] weights: those to node 1, to node 2, ..., to the output."""
        count = (self.nodes + 1) * (self.nodes + 2) // 2
        if self.graph == "learned":
            return jnp.asarray(self.param(f"stage{stage}_edges", nn.initializers.ones, (count,)))
        if self.graph == "residual":
            return jnp.ones(count)
        there = random_graph(self.nodes, self.edge_share, (self.graph_seed, stage))
        return jnp.asarray(there[np.tril_indices(self.nodes + 1)], jnp.float32)


def random_graph(
    nodes: int, share: float, seed: int | tuple[int, ...]
) -> Bool[np.ndarray, "targets sources"]:
    """Edges, each there with probability `share`, such that every node has one to and one from it.

    Row j is node j + 1, the last row the output; column i is node i, and column 0 the input. A node
    that would have no edge to it gets one from a random earlier node, one without an edge from it
    one to a random later one.
    """
    rng = np.random.default_rng(seed)
    there = np.tril(rng.random((nodes + 1, nodes + 1)) < share)
    for j in range(nodes + 1):
        if not there[j].any():
            there[j, rng.integers(j + 1)] = True
    for i in range(nodes + 1):
        if not there[i:, i].any():
            there[rng.integers(i, nodes + 1), i] = True
    return there


def edge_matrices(params: Mapping[str, Any]) -> dict[str, Float[np.ndarray, "targets sources"]]:
    """{"stage1": a, ...}: a[j - 1, i] is the weight a_ij, and the last row that of the output.

    >>> edge_matrices({"stage1_edges": jnp.array([1.0, 2.0, 3.0])})
    {'stage1': array([[1., 0.],
           [2., 3.]], dtype=float32)}

    Raises:
      ValueError: parameters without learned edges; edges that are not finite.
    """
    found = {name: np.asarray(v) for name, v in params.items() if name.endswith("_edges")}
    if not found:
        raise ValueError(
            "the parameters have no edges: pass variables['params'] of a DAG of graph='learned'."
        )
    matrices = {}
    for name, weights in found.items():
        size = (math.isqrt(8 * weights.size + 1) - 1) // 2
        if weights.shape != (size * (size + 1) // 2,) or not np.isfinite(weights).all():
            raise ValueError(
                f"{name} of shape {weights.shape} are no finite weights of all edges between "
                "nodes: pass the parameters of a DAG that did not diverge."
            )
        matrix = np.zeros((size, size), weights.dtype)
        matrix[np.tril_indices(size)] = weights
        matrices[name.removesuffix("_edges")] = matrix
    return matrices


def remove_edges(params: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """The parameters without weak edges: the learned topology.

    Edges of |a_ij| < threshold * max_i |a_ij| become 0: weak beside the strongest edge to the same
    node. Nodes normalize what they take, so that only ratios count, and no node loses all edges.
    Removing edge (i, j) changes the sum that node j takes by |a_ij| ||x_i|| at most. Edges save
    additions alone; a node that leads nowhere (`live_nodes`) can be left out.

    >>> remove_edges({"stage1_edges": jnp.array([0.1, 0.02, -0.5])}, 0.1)["stage1_edges"].tolist()
    [0.10000000149011612, 0.0, -0.5]

    Args:
      threshold: 0 or more, and less than 1.

    Raises:
      ValueError: another threshold; parameters without learned edges.
    """
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold}: expected a share of the strongest edge, 0 or more and less "
            "than 1, such as 0.1."
        )
    left = dict(params)
    for stage, matrix in edge_matrices(params).items():
        size = np.abs(matrix)
        keep = size >= threshold * size.max(axis=1, keepdims=True)
        vector = np.where(keep, matrix, 0)[np.tril_indices(len(matrix))]
        left[f"{stage}_edges"] = jnp.asarray(vector)
    return left


def live_nodes(params: Mapping[str, Any]) -> dict[str, list[int]]:
    """{"stage1": the nodes on a path of edges from the input to the output}, by edges not 0.

    >>> live_nodes({"stage1_edges": jnp.array([1.0, 0.5, 0.0])})  # node 1 leads nowhere
    {'stage1': []}

    Raises:
      ValueError: parameters without learned edges.
    """
    live = {}
    for stage, matrix in edge_matrices(params).items():
        edges = matrix != 0
        size = len(edges)
        reached, leads = {0}, {size}  # from the input, to the output
        for j in range(1, size + 1):
            if any(edges[j - 1, i] for i in reached):
                reached.add(j)
        for i in reversed(range(size)):
            if any(edges[j - 1, i] for j in leads if j > i):
                leads.add(i)
        live[stage] = sorted(node for node in reached & leads if 0 < node < size)
    return live
