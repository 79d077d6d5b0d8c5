"""A finished run as an object."""

import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.analysis import open_run
from cka_sr_jax.analysis.runs import load_runs, write_jsonl
from cka_sr_jax.workflows import run as train
from tests.training.runs import small_config


@pytest.fixture
def folder(featured):
    return featured / "beta=0.01,seed=1"


def test_its_numbers_weights_and_figures(folder):
    run = open_run(folder)
    assert (run.config["seed"], run.result["test"]["loss"]) == (1, 1.0)
    kernel = run.variables["params"]["head"]["kernel"]
    assert kernel.tolist() == [[0.0, 0.5], [-0.25, 0.0]]
    axes = run.heatmap().axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), 0.99 * np.eye(3))
    assert [label.get_text() for label in axes.get_xticklabels()] == run.cka_matrix["features"]
    assert [line.get_ydata()[0] for line in axes.lines[::2]] == [1.5]  # stage1 has two
    assert run.curves().axes[0].get_ylabel() == "loss (nats)"


def test_its_model_takes_its_variables(tmp_path):
    config = small_config(train__steps=2, penalty__beta=0.0, model__options__hidden=(8, 9))
    train(config, tmp_path, Console(quiet=True))
    run = open_run(tmp_path)
    logits = run.model.apply(run.variables, np.zeros((3, 8, 8, 1), np.float32), train=False)
    assert logits.shape == (3, 10)
    assert repr(run) == f"Run('{tmp_path}', test accuracy {run.result['test']['accuracy']:.4f})"


def test_metrics_as_columns(folder):
    lines = [
        '{"split": "train", "step": 1, "epoch": 0.5, "loss": 2.0}',
        '{"split": "validation", "step": 1, "epoch": 0.5, "accuracy": 0.5}',
        '{"split": "train", "step": 2, "epoch": 1.0, "loss": 1.0, "penalty": null}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = open_run(folder)
    assert run.columns() == {
        "step": [1, 2], "epoch": [0.5, 1.0], "loss": [2.0, 1.0], "penalty": [None, None],
    }  # fmt: skip
    assert run.columns("validation")["accuracy"] == [0.5]
    with pytest.raises(ValueError, match="no metrics of 'masks': it has train, validation"):
        run.columns("masks")


def test_a_notebook_shows_its_report_or_its_result(folder):
    assert "&quot;loss&quot;: 1.0" in open_run(folder)._repr_html_()
    (folder / "report" / "index.html").write_text('<p class="x">A & B</p>')
    shown = open_run(folder)._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;p class=&quot;x&quot;&gt;A &amp; B&lt;/p&gt;" ')


def test_what_is_no_run_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="holds 4 runs: name the folder of one"):
        open_run(folder.parent)
    with pytest.raises(ValueError, match="holds no finished run"):
        open_run(tmp_path / "elsewhere")
    (folder / "report" / "cka_matrix.csv").unlink()
    run = open_run(folder)
    with pytest.raises(ValueError, match="seed=1 has no CKA matrix: its model sows no two"):
        run.heatmap()
    write_jsonl([run], tmp_path / "runs.jsonl")
    (stored,) = load_runs([tmp_path / "runs.jsonl"])
    with pytest.raises(ValueError, match="line 1 holds no weights: name the run's folder"):
        stored.variables  # noqa: B018
