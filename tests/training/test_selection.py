"""Which weights a run reports."""

import pytest

from cka_sr_jax.workflows import run
from tests.speeds import fast_among
from tests.training.runs import records, small_config

pytestmark = pytest.mark.usefixtures("blank_images")


@pytest.mark.parametrize("end", fast_among([0.75, 1.0]))
def test_what_is_selected_has_the_density_that_was_asked_for(end, tmp_path):
    config = small_config(
        sparsity__rule="gmp", sparsity__update_every=5, sparsity__end=end, train__steps=20,
        eval__every=2, eval__select="best-validation", penalty__beta=0.0,
    )  # fmt: skip
    result = run(config, tmp_path)
    assert result["density"] == pytest.approx(0.2, abs=1e-3)
    assert result["test"]["step"] > (15 if end == 0.75 else 19)


@pytest.mark.slow
def test_selection_on_the_test_set_is_labeled(tmp_path):
    config = small_config(eval__select="best-test", eval__every=5, train__steps=20)
    result = run(config, tmp_path)
    best = max(records(tmp_path, "test-selection"), key=lambda r: r["accuracy"])
    assert result["test"]["selected"] == "best-test"
    assert result["test"]["step"] == best["step"]
    assert result["test"]["accuracy"] == pytest.approx(best["accuracy"], abs=1e-6)
    assert "Selected on the test set" in (tmp_path / "report" / "index.html").read_text()
