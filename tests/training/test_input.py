"""Each step's examples are a function of the plan's seed and the step."""

import numpy as np

from cka_sr_jax.training import loop
from cka_sr_jax.training.input import step_indices, training_data
from tests.training.runs import small_config


def test_an_epoch_has_no_example_twice_and_another_seed_another_order():
    config = small_config()
    plan = loop.prepare(config)
    data = training_data(plan)
    assert len(data["image"]) == len(data["label"]) == len(plan.dataset.train_labels)
    epoch = [step_indices(plan, step) for step in range(plan.steps_per_epoch)]
    assert {len(indices) for indices in epoch} == {config.train.batch_size}
    assert len(np.unique(np.concatenate(epoch))) == plan.steps_per_epoch * config.train.batch_size
    np.testing.assert_array_equal(step_indices(plan, 1), epoch[1])
    config.seed += 1
    assert (step_indices(plan._replace(config=config), 1) != epoch[1]).any()
