"""The page that compares runs, made of stored ones."""

import re
from pathlib import Path

import numpy as np
import pytest

from cka_sr_jax.analysis import report
from cka_sr_jax.analysis.runs import load_runs
from cka_sr_jax.report.figures import series

STORED = Path(__file__).parents[2] / "results" / "fashion_mnist_mlp_cka_curves.jsonl"
LABELS = ["beta 0", "beta 0.0001", "beta 0.001", "beta 0.01"]


@pytest.fixture(scope="module")
def runs():
    return load_runs([STORED])


def test_runs_are_labeled_by_what_differs_and_in_its_order(runs):
    assert list(report.labels_of(runs[::-1])) == LABELS
    assert report.differing_fields(runs) == ["penalty.beta"]
    (label,) = report.labels_of(runs[:1])
    assert label == f"{STORED.name}, line 1"
    twice = report.labels_of([runs[0], runs[0]._replace(name="again")])
    assert list(twice) == [f"{STORED.name}, line 1", "again"]


def test_the_curves_of_all_runs_are_in_one_panel_each(runs):
    figure = report.draw_overlay(report.labels_of(runs))
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == ["validation accuracy", "mean CKA within a stage"]  # all that is stored
    for label, (split, name) in {
        "validation accuracy": ("validation", "accuracy"),
        "mean CKA within a stage": ("validation", "cka_within_stage"),
    }.items():
        assert [line.get_label() for line in panels[label].lines] == LABELS
        for line, run in zip(panels[label].lines, runs, strict=True):
            np.testing.assert_array_equal(line.get_xydata().T, series(run.metrics, split, name))
    colors = {tuple(line.get_color()) for line in figure.axes[0].lines}
    assert len(colors) == 4
    assert report.draw_overlay({"a": runs[0]._replace(metrics=())}) is None


def test_the_page_has_a_row_and_a_map_for_each_run(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    report.main([str(STORED), f"--output={page}"])
    assert capsys.readouterr().out == f"Report: {page}\n"
    text = page.read_text()
    head, *rows = re.findall(r"<tr>(.*?)</tr>", text)
    columns = re.findall(r"<button>(.*?)</button>", head)
    assert columns[:2] == ["penalty.beta", "test accuracy (%)"]
    assert len(rows) == 4
    for row, run in zip(rows, runs, strict=True):
        cells = re.findall(r"<td data-value='(.*?)'>(.*?)</td>", row)
        beta, accuracy = run.config["penalty"]["beta"], run.result["test"]["accuracy"]
        assert float(cells[0][0]) == beta
        assert cells[1] == (str(accuracy), f"{100 * accuracy:.2f}")
    assert text.count("<img ") == 1 + 4  # the curves, and a map for each run
    assert "http" not in text  # it needs no other file


def test_all_text_is_escaped(runs):
    evil = "<script>alert('1')</script>"
    text = report.render_comparison([runs[0]._replace(name=evil), runs[0]._replace(name="b")])
    assert evil not in text
    assert text.count("<script>") == 1  # the one that sorts


def test_what_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="holds no finished run"):
        report.main([str(tmp_path)])


def test_runs_of_one_config_are_told_apart_in_the_table(runs):
    twice = [runs[0], runs[0]._replace(name="again"), runs[1]]
    text = report.render_comparison(twice)
    head, *rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert "<button>run</button>" in head
    assert len({re.findall(r">(.*?)</td>", row)[0] for row in rows}) == 3


def test_every_run_is_named_below_the_curves(runs):
    many = {f"run {i}": runs[0] for i in range(20)}
    (legend,) = report.draw_overlay(many).legends
    assert [text.get_text() for text in legend.get_texts()] == list(many)
