"""Training one network of the path."""

import jax
import numpy as np
import pytest

from cka_sr_jax.layer_sparsity import (
    active_layers,
    merge_layers,
)
from cka_sr_jax.workflows import layer_sparsity
from cka_sr_jax.workflows.layer_sparsity.fit import Strengths, fit, make_trainer
from tests.workflows.layer_sparsity.small import small_config


def test_nonnegative_input_lets_the_first_layer_merge(tmp_path):
    config = small_config(data__mean=(0.0,), data__std=(1.0,), penalty__beta=1e-3)
    plan = layer_sparsity.prepare(config)
    assert plan.task.nonnegative_input
    fitted = fit(plan, plan.hidden, strengths=Strengths(200.0))
    assert active_layers(fitted, nonnegative_input=True) == ()
    assert len(merge_layers(fitted, nonnegative_input=True)) == 1


@pytest.mark.slow
def test_the_penalty_ends_at_its_share_of_the_run():
    config = small_config(train__steps=4, penalty__beta=0.1, penalty__end=0.5)
    plan = layer_sparsity.prepare(config)
    trainer, train = make_trainer(plan, plan.hidden), plan.task.train
    state = trainer.first_state(None)
    batch = {"image": train.inputs[:64], "label": train.targets[:64]}
    on = []
    for _ in range(4):
        state, metrics = trainer.step(state, batch)
        on.append(not np.isnan(metrics["penalty"]))
    assert on == [True, True, False, False]


def test_a_step_takes_its_batch_in_parts():
    plan = layer_sparsity.prepare(small_config(train__accumulate=4))
    trainer, train = make_trainer(plan, plan.hidden), plan.task.train
    batch = {"image": train.inputs[:64], "label": train.targets[:64]}
    step = jax.make_jaxpr(trainer.step)(trainer.first_state(None), batch)
    lengths = [e.params["length"] for e in step.eqns if e.primitive.name == "scan"]
    assert lengths == [4]
