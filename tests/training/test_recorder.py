"""What a run records as its masks change."""

import itertools

import pytest

from cka_sr_jax.workflows import run
from tests.training.runs import records, small_config


def test_a_rule_that_changes_its_masks_reports_them(tmp_path):
    """Options come from the config; density, churn, R_s and training FLOPs go to the records."""
    config = small_config(
        sparsity__rule="gmp",
        sparsity__distribution="global",
        sparsity__update_every=5,
        sparsity__start=0.25,
        sparsity__end=0.5,
        train__log_every=1,
        penalty__beta=0.0,
    )
    result = run(config, tmp_path)
    training = records(tmp_path, "train")
    density = [r["density"] for r in training]
    # At its first step, 10, the schedule is where it starts: dense.
    assert [step for step in range(1, 40) if density[step] != density[step - 1]] == [15, 20]
    assert density[-1] == pytest.approx(0.2, abs=1e-4)
    assert result["explored"] == 1
    # Every update is on record: what it changed, and the FLOPs that are left.
    updates = records(tmp_path, "masks")
    assert [r["step"] for r in updates] == [11, 16, 21]
    sizes = [r["density"] for r in updates]
    assert updates[0]["churn"] == 0
    for (before, after), record in zip(itertools.pairwise(sizes), updates[1:], strict=True):
        assert record["churn"] == pytest.approx((before - after) / (before + after), rel=1e-5)
    assert result["churn"] == updates[-1]["churn"] > 0
    (layers,) = [r for r in records(tmp_path, "layers") if r["step"] == 40]
    assert sum(v for k, v in layers.items() if k.startswith("flops/")) == updates[-1]["flops"]
    assert training[-1]["training_flops"] == result["training_flops"]
    # The masks that a record tells of are those of the next step.
    used = [2 * (64 * 32 + 2 * 32 * 32 + 32 * 10), *(r["flops"] for r in training[:-1])]
    assert result["training_flops"] == sum(3 * 64 * flops for flops in used)
    assert (tmp_path / "report" / "mask_curves.png").exists()
