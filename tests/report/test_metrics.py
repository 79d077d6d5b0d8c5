"""metrics.jsonl: its records, and means over steps."""

import numpy as np

from cka_sr_jax.report.metrics import mean_metrics, read_metrics


def test_mean_metrics_leaves_out_the_penalty_where_it_was_not_computed():
    nan = float("nan")
    steps = [{"loss": 1.0, "penalty": nan}, {"loss": 3.0, "penalty": 5.0}]
    assert mean_metrics(steps) == {"loss": 2.0, "penalty": 5.0}
    assert np.isnan(mean_metrics([{"penalty": nan}])["penalty"])
    # A loss that is not finite is not hidden.
    assert np.isnan(mean_metrics([{"loss": 1.0}, {"loss": nan}])["loss"])


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
