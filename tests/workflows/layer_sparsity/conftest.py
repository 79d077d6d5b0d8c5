"""Networks are timed twice only."""

import pytest


@pytest.fixture(autouse=True)
def _quick_timing(monkeypatch):
    monkeypatch.setattr("cka_sr_jax.workflows.layer_sparsity.tables.TIMINGS", 2)
