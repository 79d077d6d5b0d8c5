"""The networks of an experiment side by side."""

import itertools

import numpy as np

from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity.compare import compare
from cka_sr_jax.workflows.layer_sparsity.fit import Estimate
from cka_sr_jax.workflows.layer_sparsity.path import Point
from tests.workflows.layer_sparsity.small import random_chain, small_config

ERROR = Estimate(0.5, 0.1)


def point(fitted, merged, warm=None, cold=None):
    return Point(1.0, (), fitted, merged, warm or fitted, cold or fitted, ERROR, ERROR, ERROR)


def test_each_network_is_counted_and_measured_on_test_data():
    plan = layer_sparsity.prepare(small_config())
    deep = random_chain((64, 12, 12, 10))
    shallow = random_chain((64, 12, 10), seed=1)
    shallow[0].kernel[:, 3] = 0
    chosen = point(deep, shallow, random_chain((64, 5, 10), seed=2), shallow)
    rows = compare(plan, point(deep, deep), chosen)
    assert [row.name for row in rows] == [
        "no penalty", "fitted", "merged", "refit, warm", "refit, cold",
    ]  # fmt: skip
    assert [row.depth for row in rows] == [3, 3, 2, 2, 2]
    assert [row.hidden for row in rows] == [[12, 12], [12, 12], [12], [5], [12]]
    merged = rows[2]
    assert merged.multiply_adds == 64 * 12 + 12 * 10
    assert merged.nonzero_multiply_adds == merged.multiply_adds - 64
    assert merged.parameters == merged.multiply_adds + 12 + 10
    assert merged.active == 1
    for row, chain in zip(rows, [deep, deep, shallow, chosen.warm, shallow], strict=True):
        outputs = np.asarray(plan.task.test.inputs)
        for i, layer in enumerate(chain):
            outputs = outputs @ layer.kernel + layer.bias
            outputs = np.maximum(outputs, 0) if i < len(chain) - 1 else outputs
        wrong = np.mean(outputs.argmax(1) != np.asarray(plan.task.test.targets))
        np.testing.assert_allclose(row.test_error, wrong, atol=1e-3)  # a tie in float32
        assert row.microseconds > 0
    assert rows[0].relative_time == 1


def test_a_teachers_depth_is_a_row_and_nothing_merged_is_none(monkeypatch):
    config = small_config(data__name="relu_teacher", train__steps=1)
    plan = layer_sparsity.prepare(config)
    inputs = plan.task.train.inputs.shape[1]
    deep = random_chain((inputs, *plan.hidden, 1))
    rows = compare(plan, point(deep, deep), point(deep, deep))
    assert [row.name for row in rows] == ["no penalty", "fitted", "oracle depth"]
    oracle = rows[2]
    sizes = [inputs, *oracle.hidden, 1]
    assert len(oracle.hidden) == plan.task.teacher_layers
    assert oracle.multiply_adds == sum(m * n for m, n in itertools.pairwise(sizes))
