"""A made-up run, its report, and a reader of its page."""

import json
from html.parser import HTMLParser

from cka_sr_jax.accounting import LayerRow
from cka_sr_jax.report import write_report

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


class Page(HTMLParser):
    """Collects the tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def report_of(workdir, *, config=CONFIG, result=RESULT, records=RECORDS, matrix=None, names=("a",)):
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
