"""Sharded parameters: masks as on one device, sharded as the parameter, never gathered whole."""

import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cka_sr_jax.similarity import cka_penalty
from cka_sr_jax.sparsity import (
    channel_masks,
    get_masks,
    leaf_paths,
    make_rule,
    n_m_masks,
    sparse_init,
    sparsify,
    static,
)
from tests.sparsity.naive import RULES
from tests.speeds import fast_among

SHAPES = {
    "blocks": {"kernel": ((4, 16, 32), P(None, "x", "y"))},
    "up0": {"kernel": ((16, 32), P("x", "y"))},
    "up1": {"kernel": ((16, 32), P("x", "y"))},
    "up2": {"kernel": ((16, 32), P("x", "y"))},
    # One shape and role, sharded differently: they share a compiled search.
    "side0": {"kernel": ((16, 32), P("x", "y"))},
    "side1": {"kernel": ((16, 32), P("y", "x"))},
    "down": {"kernel": ((32, 16), P(None, "x"))},
    "head": {"kernel": ((16, 8), P()), "bias": ((8,), P())},
}
IS_SHAPE = {"is_leaf": lambda node: isinstance(node, tuple)}


def mesh(kind):
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind))


def parameters():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf[0]).astype(np.float32), SHAPES, **IS_SHAPE
    )


def shardings(mesh):
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf[1]), SHAPES, **IS_SHAPE)


def train(tx, params, steps=3):  # masks change at the end of the last
    params, state = sparse_init(tx, params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(3 * p) + p, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state, step


def numpy_masks():
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: rng.random(p.shape) < 0.3,
        {name: {"kernel": layer["kernel"]} for name, layer in parameters().items()},
    )


STARTS = {  # first masks of other origins
    "rst drawn one by one": lambda: make_rule(
        "rst", density=0.3, exact=False, stacked={"blocks": 1}
    ),
    "static": lambda: static(numpy_masks()),
    "rigl from masks": lambda: make_rule(
        "rigl", **RULES["rigl"], stacked={"blocks": 1}, start=numpy_masks()
    ),
}


def transform(name):
    if name in STARTS:
        return sparsify(optax.adam(1e-2), STARTS[name]())
    rule = make_rule(name.split()[0], **RULES[name], stacked={"blocks": 1})
    return sparsify(optax.adam(1e-2), rule)


@pytest.fixture(scope="module")
def on_one_device():
    found = {}

    def masks(name):
        if name not in found:
            _, state, _ = train(transform(name), jax.tree.map(jnp.asarray, parameters()))
            found[name] = {path: np.asarray(mask) for path, mask in leaf_paths(get_masks(state))}
        return found[name]

    return masks


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("name", "kind"),
    fast_among(
        itertools.product((*RULES, *STARTS), ("Auto", "Explicit")),
        ("rigl", "Explicit"), ("gmp", "Auto"), ("rst drawn one by one", "Explicit"),
        ("static", "Explicit"),
    ),
)  # fmt: skip
def test_masks_are_those_of_one_device_and_sharded_as_the_parameters(name, kind, on_one_device):
    grid = mesh(AxisType[kind])
    params = jax.device_put(parameters(), shardings(grid))
    expected = {path: leaf.sharding.spec for path, leaf in leaf_paths(params)}
    with jax.set_mesh(grid):
        after, state, step = train(transform(name), params)
        masks = dict(leaf_paths(get_masks(state)))
        for path, mask in on_one_device(name).items():
            np.testing.assert_array_equal(masks[path], mask, err_msg=path)
            assert masks[path].sharding.is_equivalent_to(
                NamedSharding(grid, expected[path]), mask.ndim
            )
        # Adam's slots too.
        for slot in (state.inner_state[0].mu, state.inner_state[0].nu):
            for path, leaf in leaf_paths(slot):
                assert leaf.sharding.is_equivalent_to(
                    NamedSharding(grid, expected[path]), leaf.ndim
                )
        text = step.lower(after, state).compile().as_text()
    assert gathered(text) == []


@pytest.mark.parametrize("name", ["rigl", "channels", "granet"])
def test_a_stack_sharded_over_its_layers_is_refused_where_axes_are_explicit(name):
    grid = mesh(AxisType.Explicit)
    params = {"blocks": {"kernel": parameters()["blocks"]["kernel"]}}
    params = jax.device_put(params, NamedSharding(grid, P("x", None, "y")))
    with (
        jax.set_mesh(grid),
        pytest.raises(ValueError, match=r"is sharded over its stack of layers by a mesh"),
    ):
        train(transform(name), params)


@pytest.mark.parametrize(
    ("shape", "spec", "stacked"),
    [
        ((8, 8), P(("x", "y"), None), None),
        ((3, 3, 8, 8), P(None, None, "x", "y"), None),
        ((2, 8, 8), P("x", "y", None), {"layer": 1}),
    ],
)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_structured_masks_are_those_of_one_device(shape, spec, stacked, kind):
    grid = mesh(AxisType[kind])
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    sharded = {"layer": {"kernel": jax.device_put(kernel, NamedSharding(grid, spec))}}
    for masks_of in (
        lambda params: n_m_masks(params, 2, 4, stacked=stacked),
        lambda params: channel_masks(params, 0.5, stacked=stacked),
    ):
        with jax.set_mesh(grid):
            found = jax.jit(masks_of)(sharded)
        expected = masks_of({"layer": {"kernel": jnp.asarray(kernel)}})
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def gathered(text):
    """Shapes of all-gathers of as many elements as the smallest sharded parameter has, or more."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", text)
    sizes = [(shape, int(np.prod([int(n) for n in shape.split(",")]))) for shape in shapes]
    return [shape for shape, size in sizes if size >= 512]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", fast_among(["rst", "rigl", "granet"], "rigl"))
def test_the_state_can_be_planned_and_made_in_place(name):
    grid = mesh(AxisType.Auto)
    params = jax.device_put(parameters(), shardings(grid))
    tx = transform(name)
    planned = jax.eval_shape(tx.init, params)
    own = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
    places = jax.tree.map(lambda s: own.get(s.shape, NamedSharding(grid, P())), planned)
    made = jax.jit(tx.init, out_shardings=places)(params)
    for (path, mask), (_, other) in zip(
        leaf_paths(get_masks(made)), leaf_paths(get_masks(tx.init(params))), strict=True
    ):
        np.testing.assert_array_equal(mask, other, err_msg=path)
        assert mask.sharding.is_equivalent_to(own[mask.shape], mask.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_the_penalty_of_a_sharded_batch_is_that_of_one_device(kind):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(16, 8)).astype(np.float32) for _ in range(3)]
    grid = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"), axis_types=(kind, kind))
    sharded = jax.device_put(features, NamedSharding(grid, P("x")))
    with jax.set_mesh(grid):
        value = jax.jit(cka_penalty)(sharded)
    np.testing.assert_allclose(value, cka_penalty(features), rtol=1e-5)


def start_process(number, port):
    program = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(program), str(number), str(port)]
    devices = 4 if number < 0 else 2
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | flags, text=True, **pipes)


@pytest.mark.slow
def test_two_processes_end_with_the_masks_and_weights_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    printed = []
    for numbers in ([-1], [0, 1]):
        processes = [start_process(number, port) for number in numbers]
        try:
            for process in processes:
                out, err = process.communicate(timeout=600)
                assert process.returncode == 0, err
                printed.append([line for line in out.splitlines() if not line.startswith("[Gloo]")])
        finally:
            for process in processes:
                process.kill()
    assert len(printed[0]) == 5
    assert printed[0] == printed[1] == printed[2]
