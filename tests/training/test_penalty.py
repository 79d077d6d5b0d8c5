"""The penalty that a config describes: which similarity, and when it is on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cka_sr_jax.similarity import cca_penalty, cka_penalty
from cka_sr_jax.training import cka_sr, create_penalty, default_config
from cka_sr_jax.workflows import run
from tests.training.runs import records, small_config

pytestmark = pytest.mark.usefixtures("blank_images")


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("name", "similarity"), [("cka", cka_penalty), ("cca", cca_penalty)])
def test_the_penalty_of_a_config(name, similarity, debiased):
    config = default_config().penalty
    config.update(similarity=name, debiased=debiased, pairs="all", reduction="mean", samples=6)
    rng = np.random.default_rng(0)
    features = {f"stage{i}": rng.normal(size=(9, 5 + i)).astype(np.float32) for i in range(3)}
    expected = similarity(features, samples=6, pairs="all", reduction="mean", debiased=debiased)
    np.testing.assert_allclose(
        create_penalty(config, 10).value(features, None), expected, rtol=1e-6
    )
    other = similarity(features, samples=6, pairs="all", reduction="mean", debiased=not debiased)
    assert abs(expected - other) > 0.1


def test_when_it_is_on():
    config = default_config().penalty
    config.update(beta=2.0, every=3, end=0.5)
    penalty = create_penalty(config, 20)
    features = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    value = jax.jit(lambda f: cka_penalty(f, samples=8))(tuple(features))
    term_at = jax.jit(lambda step: penalty.term(tuple(features), step, None))
    for step in range(20):
        term, logged = term_at(jnp.int32(step))
        due = step % 3 == 0 and step < 10
        np.testing.assert_allclose(term, 2 * value if due else 0, rtol=1e-6)
        assert jnp.isnan(logged) != due


def test_the_number_0_switches_it_off():
    config = default_config().penalty
    config.beta = 0.0
    penalty = create_penalty(config, 20)
    assert penalty.is_off
    assert not penalty._replace(beta=jnp.zeros(())).is_off  # may be traced: any number


@pytest.mark.slow
def test_the_config_says_when_the_penalty_is_on_and_of_which_kernel(tmp_path):
    logged = {}
    for kernel in ("linear", "rbf"):
        config = small_config(
            penalty__kernel=kernel,
            penalty__end=0.5,
            penalty__every=1,
            train__steps=4,
            train__log_every=1,
        )
        run(config, tmp_path / kernel)
        logged[kernel] = [r.get("penalty") for r in records(tmp_path / kernel, "train")]
    for values in logged.values():
        assert [value is None for value in values] == [False, False, True, True]
    assert abs(logged["linear"][0] - logged["rbf"][0]) > 1e-3


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_samples_of_a_sharded_batch_are_those_of_one_device(kind):
    features = list(jax.random.normal(jax.random.key(0), (2, 32, 7)))
    penalty = cka_sr(1.0, samples=6)
    expected = penalty.term(features, jnp.int32(0), None)[0]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(features, NamedSharding(mesh, PartitionSpec("d")))
        term = jax.jit(lambda features: penalty.term(features, jnp.int32(0), None)[0])
        np.testing.assert_allclose(term(spread), expected, rtol=1e-5)
