"""The page of a run: what it says, and that it needs no other file."""

import numpy as np
import pytest

from cka_sr_jax.report.html import DISCLAIMER, selected_on_test
from tests.report.made_up import CONFIG, RESULT, Page, report_of


def test_page_is_self_contained(tmp_path):
    page = Page(report_of(tmp_path, matrix=np.eye(2), names=("stage1.0", "stage1.1")))
    links = [
        attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs
    ]
    assert len(links) == 6
    assert all(link.startswith("data:image/png;base64,") for link in links)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 6
    assert not {"link", "script", "iframe"} & set(tags)
    css = (tmp_path / "report" / "index.html").read_text().split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_page_says_what_was_run_and_what_came_out(tmp_path):
    text = Page(report_of(tmp_path)).text
    assert "resnet20 on cifar10: rst, density 0.05, beta 0.0001" in text
    for shown in ("87.65%", "123,456", "not computed", "1 x cpu", "nested.deep.flag", "True"):
        assert shown in text
    assert DISCLAIMER in text
    assert "stem/kernel" in text
    assert "884,736" in text
    assert "penalty was off" not in text
    assert "Selected on the test set" not in text


def test_penalty_off_and_selection_on_test_are_said(tmp_path):
    result = {**RESULT, "test": {"accuracy": 0.9, "selected": "best-test"}}
    page = Page(report_of(tmp_path, config={**CONFIG, "penalty": {"beta": 0.0}}, result=result))
    assert "penalty was off" in page.text
    assert "Selected on the test set" in page.text
    assert ("p", {"class": "warning", "role": "note"}) in page.tags


@pytest.mark.parametrize(
    ("selected", "expected"),
    [("best-test", True), ("test-selection", True), ("test", True),
     ("last", False), ("latest", False), ("best-validation", False), (None, False)],
)  # fmt: skip
def test_selected_on_test_reads_whole_words(selected, expected):
    assert selected_on_test({"test": {"selected": selected}}) is expected


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    config = {**CONFIG, "model": {"name": evil}, evil: evil}
    path = report_of(tmp_path, config=config, result={**RESULT, evil: evil})
    page = Page(path)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script>" not in path.read_text()
    assert evil in page.text  # unescaped once, it reads as it was


@pytest.mark.parametrize("records", [None, [], [{"split": "train", "step": 1}]])
def test_missing_keys_and_metrics_still_make_a_page(tmp_path, records):
    page = Page(report_of(tmp_path, config={}, result={}, records=records))
    assert "unknown on unknown" in page.text
    assert "no CKA matrix" in page.text
