"""What is measured of a network as it trains."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cka_sr_jax.data import normalize
from cka_sr_jax.similarity import cka_penalty, effective_rank
from cka_sr_jax.training import build as build_module
from cka_sr_jax.training import (
    new_state,
    replicate,
)
from cka_sr_jax.training.evaluation import make_evaluator, stage_means
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.training.runs import small_config


class UnsortedStages(nn.Module):
    """Sows its stages in another order than that of their names."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        self.sow("features", "stem", x)
        for _ in range(3):
            x = nn.relu(nn.Dense(16)(x))
            self.sow("features", "body", x)
        return nn.Dense(self.num_classes)(x)


@pytest.mark.slow
def test_stages_keep_their_features_whatever_their_names(monkeypatch):
    monkeypatch.setattr(
        build_module, "create_model", lambda name, classes, **_: UnsortedStages(classes)
    )
    config = small_config(penalty__beta=0.0)
    config.model.options = ConfigDict()
    plan = prepare(config)
    evaluator, state = make_evaluator(plan), new_state(plan)
    assert evaluator.features == {"body": 3, "stem": 1}
    images = normalize(plan.dataset.validation_images[:128], plan.mean, plan.std)
    _, sown = plan.model.apply({"params": state.params}, images, train=False, mutable=["features"])
    features = sown["features"]
    expected = cka_penalty({"body": features["body"]}, reduction="mean")
    matrix = evaluator.cka(replicate(state, jax.local_devices()))
    actual = stage_means(matrix, evaluator.features)
    assert actual["cka_within_stage"] == pytest.approx(float(expected), abs=1e-4)
    ranks = evaluator.ranks(replicate(state, jax.local_devices()))
    assert list(ranks) == ["body.0", "body.1", "body.2", "stem.0"]
    assert ranks["stem.0"] == pytest.approx(float(effective_rank(features["stem"][0])), rel=1e-4)
    cross = [cka_penalty((features["stem"][0], x), reduction="mean") for x in features["body"]]
    assert actual["cka_cross_stage"] == pytest.approx(float(np.mean(cross)), abs=1e-4)


def test_a_model_without_features_runs_without_the_penalty(tmp_path):
    config = small_config(penalty__beta=0.0, train__steps=3)
    config.model.options.hidden = ()
    result = run(config, tmp_path / "run")
    assert result["cka_within_stage"] is None
    assert result["outlier_share"] is None
    assert result["effective_rank"] == {}
