"""A signal stops a run between two steps."""

from contextlib import contextmanager

import pytest

from cka_sr_jax.training import Checkpoints, loop, recorder
from cka_sr_jax.workflows import run
from tests.training.runs import small_config


def test_a_signal_while_a_step_is_recorded_waits_for_the_next(tmp_path, monkeypatch):
    config = small_config(train__steps=6, train__log_every=1, penalty__beta=0.0)
    received = []

    @contextmanager
    def stop_signals():
        yield received

    average = recorder.mean_metrics
    monkeypatch.setattr(loop, "stop_signals", stop_signals)
    monkeypatch.setattr(
        recorder, "mean_metrics", lambda steps: (received.append(15), average(steps))[1]
    )
    with pytest.raises(SystemExit, match="Stopped at step 2 of 6"):
        run(config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.close()
