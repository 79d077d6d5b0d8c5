import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from cka_sr_jax.accounting import LayerRow
from cka_sr_jax.report import write_report
from cka_sr_jax.report.html import DISCLAIMER, selected_on_test
from cka_sr_jax.report.metrics import read_metrics

CONFIG = {
    "data": {"name": "cifar10"},
    "model": {"name": "resnet20"},
    "sparsity": {"rule": "rst", "density": 0.05},
    "penalty": {"beta": 1e-4},
}
RESULT = {
    "test": {"accuracy": 0.8765, "loss": 0.5, "selected": "last"},
    "density": 0.05,
    "parameters": 123456,
    "cka_within_stage": None,
    "devices": "1 x cpu",
    "nested": {"deep": {"flag": True}},
}
ROWS = [
    LayerRow("stem/kernel", (3, 3, 3, 16), 432, 216, 0.5, 884736, 442368),
    LayerRow("stem_bn/scale", (16,), 16, 16, 1.0, 0, 0),
]
RECORDS = [
    {"split": "train", "step": 1, "epoch": 0.5, "loss": 2.0, "accuracy": 0.1},
    {"split": "validation", "step": 2, "epoch": 1, "accuracy": 0.2, "cka_within_stage": 0.7},
]


class _Page(HTMLParser):
    """Collects the tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _report(workdir, *, config=CONFIG, result=RESULT, records=RECORDS, matrix=None, names=("a",)):
    (workdir / "config.json").write_text(json.dumps(config))
    if records is not None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (workdir / "metrics.jsonl").write_text(lines)
    return write_report(
        workdir,
        result=result,
        layers=ROWS,
        cka_matrix=matrix,
        feature_names=list(names),
        feature_groups=["stage1"] * len(names),
    )


def test_page_is_self_contained(tmp_path):
    page = _Page(_report(tmp_path, matrix=np.eye(2), names=("stage1.0", "stage1.1")))
    links = [
        attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs
    ]
    assert len(links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in links)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 4
    assert not {"link", "script", "iframe"} & set(tags)
    css = (tmp_path / "report" / "index.html").read_text().split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_page_says_what_was_run_and_what_came_out(tmp_path):
    text = _Page(_report(tmp_path)).text
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
    page = _Page(_report(tmp_path, config={**CONFIG, "penalty": {"beta": 0.0}}, result=result))
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
    path = _report(tmp_path, config=config, result={**RESULT, evil: evil})
    page = _Page(path)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script>" not in path.read_text()
    assert evil in page.text  # unescaped once, it reads as it was


@pytest.mark.parametrize("records", [None, [], [{"split": "train", "step": 1}]])
def test_missing_keys_and_metrics_still_make_a_page(tmp_path, records):
    page = _Page(_report(tmp_path, config={}, result={}, records=records))
    assert "unknown on unknown" in page.text
    assert "no CKA matrix" in page.text


def test_files_next_to_the_page(tmp_path):
    matrix = np.array([[1.0, 0.25], [0.25, 1.0]])
    page = _report(tmp_path, matrix=matrix, names=("a", "b"))
    assert page == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "cka_curve.png", "cka_heatmap.png", "cka_matrix.csv", "density.png", "index.html",
        "layers.csv", "learning_curves.png",
    ]  # fmt: skip
    with (page.parent / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "stem/kernel", "shape": "3x3x3x16", "parameters": "432", "kept": "216",
        "density": "0.5", "flops_dense": "884736", "flops": "442368",
    }  # fmt: skip
    assert rows[1]["path"] == "stem_bn/scale"
    assert (page.parent / "cka_matrix.csv").read_text().splitlines()[1] == "a,1.0,0.25"
    assert _report(tmp_path, matrix=matrix, names=("a", "b")) == page  # a second time is fine


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(
            tmp_path, result={}, layers=[], cka_matrix=None, feature_names=[], feature_groups=[]
        )
    assert list(tmp_path.iterdir()) == []
