"""metrics.jsonl: its records, and means over steps."""

import json
import math

import numpy as np
import pytest

from cka_sr_jax.report.metrics import MetricWriter, mean_metrics, read_metrics


def test_mean_metrics_leaves_out_the_penalty_where_it_was_not_computed():
    nan = float("nan")
    steps = [{"loss": 1.0, "penalty": nan}, {"loss": 3.0, "penalty": 5.0}]
    assert mean_metrics(steps) == {"loss": 2.0, "penalty": 5.0}
    assert np.isnan(mean_metrics([{"penalty": nan}])["penalty"])
    # A loss that is not finite is not hidden.
    assert np.isnan(mean_metrics([{"loss": 1.0}, {"loss": nan}])["loss"])


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"split": "train", "step": step} for step in (1, 2)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + '{"st')
    assert read_metrics(path) == records


def test_skipped_steps_are_counted_and_left_out():
    steps = [
        {"loss": 1.0, "finite": 1.0},
        {"loss": math.inf, "finite": 0.0},
        {"loss": 2.0, "finite": 1.0},
    ]
    assert mean_metrics(steps) == {"loss": 1.5, "skipped_steps": 1.0}
    assert math.isnan(mean_metrics([{"loss": math.inf, "finite": 0.0}])["loss"])


@pytest.mark.parametrize(
    "line",
    ["{", '{"split": "train"}', '{"step": 1}', "[]", "7", '{"split": "train", "step": "x"}',
     '{"split": "train", "step": 2, "loss": "x"}', "\\x00\\x00",
     '{"split": "train", "step": 2, "loss": 1%s}' % (400 * "0"), 100_000 * "["],
)  # fmt: skip
def test_damaged_lines_are_left_out(line, tmp_path):
    good = {"split": "train", "step": 1, "loss": 0.5, "penalty": None}
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    assert read_metrics(path) == [good]
    writer = MetricWriter(tmp_path, 5)
    assert writer.damaged == 1
    writer.write("train", 6, {"loss": math.nan})
    writer.close()
    assert read_metrics(path) == [good, {"split": "train", "step": 6, "loss": None}]
