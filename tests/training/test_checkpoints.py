"""Checkpoints: what is refused."""

import json

import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.models import create_model
from cka_sr_jax.training import (
    Checkpoints,
    ConfigError,
    load_variables,
    loop,
)
from cka_sr_jax.training.evaluation import make_evaluator
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.training.runs import arrays, small_config


def test_checkpoints_refuse_other_shapes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.zeros((2, 3), np.float32), "mask": np.ones(3, bool)})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="does not fit this run: 'mask' is"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32), "mask": np.ones(4, bool)})
    with pytest.raises(ValueError, match="only the checkpoint has 'mask'"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32)})
    checkpoints.close()


def test_load_variables_gives_the_tested_weights(finished):
    variables = load_variables(finished[0])
    stored = arrays(finished[0])
    head = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(head, stored["state.params.head.kernel"])
    logits = create_model("mlp", 10, hidden=(32, 32, 32)).apply(
        variables, np.zeros((2, 8, 8, 1), np.float32), train=False
    )
    assert logits.shape == (2, 10)
    with pytest.raises(ValueError, match="holds no run"):
        load_variables(finished[0] / "report")


@pytest.mark.parametrize(("stored", "wanted"), [("dense", "rst"), ("rst", "dense")])
def test_a_checkpoint_without_the_masks_of_the_run_is_refused(stored, wanted, tmp_path):
    config = small_config(sparsity__rule=stored, train__steps=1, penalty__beta=0.0)
    plan = prepare(config)
    loop.train(plan, tmp_path, make_evaluator(plan), Console(quiet=True))
    config.sparsity.rule = wanted
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    place = "run" if stored == "dense" else "checkpoint"
    with pytest.raises(ConfigError, match=f"only the {place} has 'state.opt_state.masks"):
        run(config, tmp_path)
