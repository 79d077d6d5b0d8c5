"""The path of strengths: where it ends, its refits, and the choice among them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.layer_sparsity import (
    apply_chain,
    cka_without_layers,
    layer_entropies,
    remove_activation,
)
from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity import path as path_module
from cka_sr_jax.workflows.layer_sparsity.fit import Estimate, Strengths
from cka_sr_jax.workflows.layer_sparsity.path import Point, choose
from tests.workflows.layer_sparsity.small import random_chain, small_config


def test_the_choice_does_without_test_data(tmp_path, monkeypatch):
    def untrained(plan, hidden, *, start=None, strengths=Strengths(), method=None):  # noqa: B008
        nonnegative = (1, 2) if strengths.layer else ()
        return start or random_chain((10, *hidden, 1), nonnegative=nonnegative)

    monkeypatch.setattr(path_module, "fit", untrained)
    plan = layer_sparsity.prepare(small_config(data__name="relu_teacher"))
    plan = plan._replace(task=plan.task._replace(test=None))
    path = path_module.fit_path(plan, Console(quiet=True))
    assert [len(point.merged) for point in path] == [4, 2]
    assert any(choose(path, 1.0) is point for point in path)


def nonzero(chain):
    return sum(int(np.count_nonzero(layer.kernel)) for layer in chain)


def test_a_sparse_refit_keeps_its_zeros(tmp_path):
    config = small_config(sparsity__rule="rst", sparsity__density=0.2, train__steps=30,
                          layer_sparsity__refit_keep_zeros=True)  # fmt: skip
    plan = layer_sparsity.prepare(config)
    merged = random_chain((64, 12, 10))
    merged[1].kernel[::2] = 0
    for cold in (False, True):
        refitted = path_module.refit(plan, merged, cold=cold)
        assert not np.asarray(refitted[1].kernel)[::2].any()
        assert np.asarray(refitted[1].kernel)[1::2].all()


def test_connections_and_units_of_a_refit_become_exactly_0(tmp_path):
    config = small_config(train__steps=100, optimizer__learning_rate=1e-2)
    plan = layer_sparsity.prepare(config)
    merged = random_chain((64, 12, 10))
    config.layer_sparsity.refit_l1 = 0.5
    sparse = path_module.refit(plan, merged, cold=True)
    total = sum(layer.kernel.size for layer in merged)
    assert 0.1 * total < nonzero(sparse) < 0.9 * total
    config.layer_sparsity.refit_l1, config.layer_sparsity.refit_row_group = 0.0, 5.0
    narrow = path_module.refit(plan, merged, cold=True)
    width = narrow[0].kernel.shape[1]
    assert 1 <= width < 12
    assert [layer.kernel.shape for layer in narrow] == [(64, width), (width, 10)]
    assert np.asarray(narrow[0].kernel).any(axis=0).all()


def test_choice_is_the_shallowest_within_standard_errors():
    def point(strength, depth, error):
        chain = random_chain([3] * (depth + 1))
        warm = Estimate(error, 0.01)
        errors = Estimate(1.0, 0.0), warm, Estimate(0.5, 0.01)
        return Point(strength, (), *[chain] * 4, *errors)

    path = [point(0, 5, 0.105), point(1, 4, 0.10), point(2, 3, 0.108), point(3, 2, 0.2)]
    assert choose(path, 1.0).strength == 2
    assert choose(path, 0.0).strength == 1
    assert choose(path, 10.0).strength == 3


def test_a_path_ends_where_training_diverges(tmp_path, monkeypatch):
    plan = layer_sparsity.prepare(small_config(train__steps=5))

    def diverging(*args, strengths=Strengths(), **kwargs):  # noqa: B008
        chain = random_chain((64, 12, 12, 12, 10))
        return jax.tree.map(lambda a: a * jnp.nan, chain) if strengths.layer else chain

    monkeypatch.setattr(path_module, "fit", diverging)
    path = path_module.fit_path(plan, Console(quiet=True))
    assert [point.strength for point in path] == [0]


@pytest.mark.parametrize(
    ("score", "scores"), [("entropy", layer_entropies), ("cka", cka_without_layers)]
)
def test_a_score_removes_the_lowest_layer_of_the_last_refit(score, scores):
    config = small_config(layer_sparsity__strengths=(), layer_sparsity__score=score)
    config.train.steps = 10
    plan = layer_sparsity.prepare(config)
    path = path_module.fit_path(plan, Console(quiet=True))
    assert [len(point.merged) for point in path] == [4, 3, 2]
    assert [len(point.active) for point in path] == [3, 2, 1]
    assert not path[0].has_merged
    for before, after in itertools.pairwise(path):
        values = scores(before.warm, plan.task.train.inputs[:1000])
        lowest = int(np.argmin(values))
        assert after.active == tuple(np.delete(before.active, lowest))
        expected = remove_activation(before.warm, lowest)
        jax.tree.map(np.testing.assert_array_equal, after.merged, expected)
        assert after.fitted is before.warm
        # The error before the refit is that of the network without the ReLU.
        outputs = apply_chain(expected, plan.task.validation.inputs)
        wrong = np.argmax(outputs, -1) != plan.task.validation.targets
        assert after.fitted_error.mean == pytest.approx(float(np.mean(wrong)))
