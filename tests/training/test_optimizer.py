"""Learning rates over a run."""

import pytest

from cka_sr_jax.training import default_config
from cka_sr_jax.training.optimizer import create_schedule


def test_schedules():
    config = default_config().optimizer
    config.learning_rate = 1.0
    step = create_schedule(config, steps=100)
    rates = [float(step(s)) for s in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    config.schedule = "cosine"
    config.warmup = 20 / 120
    cosine = create_schedule(config, steps=120)
    assert float(cosine(0)) == pytest.approx(1 / 20)
    assert float(cosine(9)) == pytest.approx(0.5)
    assert float(cosine(20)) == pytest.approx(1)
    assert float(cosine(70)) == pytest.approx(0.5)
    assert float(cosine(120)) == pytest.approx(0, abs=1e-6)
    config.schedule = "constant"
    assert float(create_schedule(config, 100)(99)) == 1
