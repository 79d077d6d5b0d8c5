"""The data of a teacher network."""

import numpy as np
import pytest

from cka_sr_jax.training import default_config
from cka_sr_jax.workflows.layer_sparsity import tasks


def test_the_teacher_is_standardized_and_a_function_of_the_seed():
    options = default_config().layer_sparsity.teacher
    task, same, other = (tasks.teacher_task(options, seed) for seed in (0, 0, 1))
    assert task.train.inputs.shape == (4000, 10)
    assert task.test.targets.shape == task.validation.targets.shape == (2000, 1)
    np.testing.assert_array_equal(task.train.targets, same.train.targets)
    assert (np.asarray(task.train.targets) != other.train.targets).any()
    targets = np.concatenate([s.targets for s in (task.train, task.validation, task.test)])
    assert targets.mean() == pytest.approx(0, abs=0.02)
    assert targets.var() == pytest.approx(1 + 0.3**2, rel=0.05)
