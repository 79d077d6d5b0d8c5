"""The paper's tables 2 and 5, read from the configs' docstrings."""

from pathlib import Path

import numpy as np
import pytest

from cka_sr_jax.analysis.paper_tables import (
    main,
    summary_of_table_2,
    summary_of_table_5,
    table_2,
    table_5,
)

ROOT = Path(__file__).parents[2]


def test_the_tables_have_the_paper_s_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = table_2()
    assert runs.shape == (5, 12)
    assert np.isnan(runs).sum() == 1  # the run that collapsed
    assert np.nanmin(runs) > 80
    gains = table_5()
    assert gains.shape == (3, 6)
    assert (gains[1:] > gains[0]).all()


def test_effects_of_rows_and_of_columns():
    by_beta = np.tile([84.0, 85.0, 86.0, 87.0], (5, 1)) + 0.01 * np.arange(5)[:, None]
    line = summary_of_table_2(by_beta)[1]
    assert line == "one-way analysis of variance: by beta p = 0.00, by sampling p = 1.00"
    assert summary_of_table_2(by_beta)[0].startswith("20 runs: mean 85.52, standard deviation 1.15")


def test_gains_over_the_baseline():
    values = np.array([[70.0, 60.0], [71.0, 62.0], [69.0, 61.0]])
    first, second, _ = summary_of_table_5(values, deviation=0.3)
    assert first.startswith("CKA-SR: 2 of 2 sparsities above beta 0, +1.50")
    assert second.startswith("AugCKA-SR: 1 of 2 sparsities above beta 0, +0.00")


def test_another_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is not in this folder: run this from the repository's"):
        main()
