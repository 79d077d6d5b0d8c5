"""metrics.jsonl: means over steps."""

import numpy as np

from cka_sr_jax.report.metrics import mean_metrics


def test_mean_metrics_leaves_out_the_penalty_where_it_was_not_computed():
    nan = float("nan")
    steps = [{"loss": 1.0, "penalty": nan}, {"loss": 3.0, "penalty": 5.0}]
    assert mean_metrics(steps) == {"loss": 2.0, "penalty": 5.0}
    assert np.isnan(mean_metrics([{"penalty": nan}])["penalty"])
    # A loss that is not finite is not hidden.
    assert np.isnan(mean_metrics([{"loss": 1.0}, {"loss": nan}])["loss"])
