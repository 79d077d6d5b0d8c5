"""The files of a report."""

import csv

import numpy as np
import pytest

from cka_sr_jax.report import write_report
from tests.report.made_up import report_of


def test_files_next_to_the_page(tmp_path):
    matrix = np.array([[1.0, 0.25], [0.25, 1.0]])
    page = report_of(tmp_path, matrix=matrix, names=("a", "b"))
    assert page == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "accuracy_curve.png", "cka_curve.png", "cka_heatmap.png", "cka_matrix.csv", "density.png",
        "index.html", "layers.csv", "learning_rate_curve.png", "loss_curve.png",
    ]  # fmt: skip
    with (page.parent / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "stem/kernel", "shape": "3x3x3x16", "parameters": "432", "kept": "216",
        "density": "0.5", "flops_dense": "884736", "flops": "442368", "pruned_as": "",
    }  # fmt: skip
    assert rows[1]["path"] == "stem_bn/scale"
    assert (page.parent / "cka_matrix.csv").read_text().splitlines()[1] == "a,1.0,0.25"
    assert report_of(tmp_path, matrix=matrix, names=("a", "b")) == page  # a second time is fine


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(
            tmp_path, result={}, layers=[], cka_matrix=None, feature_names=[], feature_groups=[]
        )
    assert list(tmp_path.iterdir()) == []
