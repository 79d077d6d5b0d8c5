"""Figures of a grid of hand-made runs: what they show, and the errors of the command."""

import json

import numpy as np
import pytest

from cka_sr_jax.analysis import figures
from cka_sr_jax.analysis.runs import load_runs, write_jsonl

NAMES = ("stage1.0", "stage1.1", "stage2.0")


@pytest.fixture
def written(monkeypatch):
    """{path: figure} of what a command writes."""
    found = {}
    monkeypatch.setattr(figures, "write_png", lambda figure, path: found.update({path: figure}))
    return found


@pytest.mark.parametrize("kind", figures.DRAW)
def test_each_figure_from_the_command_line(featured, capsys, kind, written):
    figures.main([kind, str(featured), "figure.png"])
    shown = f"{featured}/beta=0.0,seed=0, {featured}/beta=0.01,seed=0"
    assert capsys.readouterr().out == f"figure.png shows {shown}\n"
    axes = written["figure.png"].axes
    if kind == "curves":
        labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    else:
        labels = [panel.get_title() for panel in axes[:2]]
    assert labels == ["beta 0", "beta 0.01"]


def test_a_figure_is_written_into_a_new_folder(featured, tmp_path):
    png = tmp_path / "new" / "figure.png"
    figures.main(["curves", str(featured), str(png)])
    assert png.exists()


def test_figures_of_a_json_lines_file_are_those_of_the_folders(featured, tmp_path, written):
    file = tmp_path / "runs.jsonl"
    write_jsonl(load_runs([featured]), file)
    for kind in ("curves", "heatmaps"):
        figures.main([kind, str(featured), "folders.png"])
        figures.main([kind, str(file), "file.png"])
        for a, b in zip(written["folders.png"].axes, written["file.png"].axes, strict=True):
            assert a.get_title() == b.get_title()
            for x, y in zip(a.lines, b.lines, strict=True):
                np.testing.assert_array_equal(x.get_xydata(), y.get_xydata())
            for x, y in zip(a.images, b.images, strict=True):
                np.testing.assert_array_equal(x.get_array(), y.get_array())
    with pytest.raises(SystemExit, match="line 1 holds no weights: name the run's folder"):
        figures.main(["histograms", str(file), "x.png"])


def test_where_chooses_among_the_runs(featured, written, capsys):
    command = ["heatmaps", str(featured), "x.png", "--field=seed"]
    figures.main([*command, "--where", "penalty.beta=0.01", "--where", "sparsity.rule=rst"])
    assert [axes.get_title() for axes in written["x.png"].axes[:2]] == ["seed 0", "seed 1"]
    assert capsys.readouterr().out.count("beta=0.01") == 2
    with pytest.raises(SystemExit, match=r"has no run with penalty.beta = 0.5: change or drop"):
        figures.main([*command, "--where", "penalty.beta=0.5"])
    with pytest.raises(SystemExit, match=r"did you mean 'penalty.beta'"):
        figures.main([*command, "--where", "penalty.betta=0.5"])


def test_histograms_count_the_kept_weights(featured):
    runs = {str(k): v for k, v in figures.runs_by_value([featured], "penalty.beta").items()}
    panels = figures.draw_histograms(runs).axes
    assert [axes.get_title() for axes in panels] == ["0.0", "0.01"]
    for axes in panels:
        bars = [bar for bar in axes.patches if bar.get_height()]
        assert len(axes.patches) == figures.BINS
        assert [bar.get_height() for bar in bars] == [1, 1]  # 0.5 and -0.25; the zeros are pruned
        for bar, weight in zip(bars, (-0.25, 0.5), strict=True):
            assert bar.get_x() - 1e-6 <= weight <= bar.get_x() + bar.get_width() + 1e-6
        assert axes.get_xlabel() == "weight"


def test_one_run_for_each_value(featured):
    runs = figures.runs_by_value([featured], "penalty.beta")
    assert {beta: run.folder.name for beta, run in runs.items()} == {
        0.0: "beta=0.0,seed=0",
        0.01: "beta=0.01,seed=0",
    }
    only = figures.runs_by_value([featured / "beta=0.01,seed=1"], "seed")
    assert list(only) == [1]
    np.testing.assert_array_equal(figures.kept_weights(runs[0.0]), [0.5, -0.25])


def test_the_lowest_seed_is_the_first_as_a_number(featured):
    for run in featured.glob("*seed=0"):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"seed": 10}))
        run.rename(run.with_name(run.name.replace("seed=0", "seed=10")))
    assert {
        run.folder.name[-6:] for run in figures.runs_by_value([featured], "penalty.beta").values()
    } == {"seed=1"}


@pytest.mark.parametrize("run", ["beta=0.01,seed=0", "beta=0.01,seed=1"])  # drawn, and not
def test_runs_that_differ_in_another_field_are_refused(featured, run):
    path = featured / run / "config.json"
    config = json.loads(path.read_text())
    config["sparsity"]["density"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"density \(0.05, 0.5\): choose runs that agree"):
        figures.main(["curves", str(featured), "x.png"])


def test_lines_show_means_and_deviations():
    lines = {"rst": {0.05: [80.0, 82.0], 0.0: [70.0]}, "rigl": {0.05: [83.0]}}
    (axes,) = figures.draw_lines(lines, "density", "accuracy").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.05"]
    rst, rigl = axes.containers
    np.testing.assert_allclose(rst[0].get_xydata(), [[0, 70], [1, 81]])
    np.testing.assert_allclose(rigl[0].get_xydata(), [[1, 83]])
    segments = rst[2][0].get_segments()
    np.testing.assert_allclose(segments[1][:, 1], [81 - np.sqrt(2), 81 + np.sqrt(2)])


def test_differences_show_intervals_and_single_pairs_as_open_circles():
    differences = {"rst": (0.1, 0.2), "set": (0.3, np.nan)}
    (axes,) = figures.draw_differences(differences, "beta against 0", "test.accuracy").axes
    assert axes.get_title() == "beta against 0"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rst", "set"]
    many, single = axes.containers
    np.testing.assert_allclose(many[0].get_xydata(), [[0.1, 0]])
    np.testing.assert_allclose(many[2][0].get_segments()[0][:, 0], [-0.1, 0.3], atol=1e-9)
    assert not single[2]
    assert single[0].get_markerfacecolor() == "white"


def test_heat_maps_and_curves_show_what_was_stored(featured):
    runs = {str(k): v for k, v in figures.runs_by_value([featured], "penalty.beta").items()}
    panels = figures.draw_heatmaps(runs).axes[:2]
    assert [axes.get_title() for axes in panels] == ["0.0", "0.01"]
    np.testing.assert_allclose(panels[1].images[0].get_array(), 0.99 * np.eye(3))
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == [*NAMES]
    within, cross = figures.draw_curves(runs).axes
    np.testing.assert_allclose(within.lines[0].get_xydata(), [[1.0, 0.5]])
    np.testing.assert_allclose(cross.lines[0].get_xydata(), [[1.0, 0.25]])


def test_what_is_missing_is_one_sentence(featured, tmp_path, capsys):
    with pytest.raises(SystemExit, match="holds no finished run"):
        figures.main(["curves", str(tmp_path), "x.png"])
    with pytest.raises(SystemExit, match=r"did you mean 'penalty\.beta'"):
        figures.main(["curves", str(featured), "x.png", "--field=penalty.betta"])
    with pytest.raises(SystemExit, match="2"):  # argparse says it and prints the usage
        figures.main(["curves", str(featured), "x.png", "--where", "seed"])
    assert "'seed': expected FIELD=VALUE, such as seed=1." in capsys.readouterr().err
    for run in featured.glob("*"):
        (run / "metrics.jsonl").write_text('{"split": "train", "step": 1}\n')
        (run / "report" / "cka_matrix.csv").unlink()
    with pytest.raises(SystemExit, match="logged no CKA"):
        figures.main(["curves", str(featured), "x.png"])
    with pytest.raises(SystemExit, match=r"has no CKA matrix"):
        figures.main(["heatmaps", str(featured), "x.png"])


def test_files_that_are_missing_or_damaged_are_named(featured):
    run = featured / "beta=0.0,seed=0"
    matrix = run / "report" / "cka_matrix.csv"
    whole = matrix.read_text()
    for text in ("", "feature,a\n", whole.replace("1.0", "one"), whole[: len(whole) // 2]):
        matrix.write_text(text)
        with pytest.raises(SystemExit, match=r"cka_matrix.csv is damaged, as it holds no square"):
            figures.main(["heatmaps", str(featured), "x.png"])
    matrix.unlink()
    matrix.parent.rmdir()
    with pytest.raises(
        SystemExit, match=r"seed=0/report is missing, and CKA with it: delete the run's result.json"
    ):
        figures.main(["heatmaps", str(featured), "x.png"])
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    for text in ("", whole[:-9], "{\n" + whole, "[]\n"):
        metrics.write_text(text)
        with pytest.raises(SystemExit, match=r"metrics.jsonl is damaged or cut short: restore it"):
            figures.main(["curves", str(featured), "x.png"])
    metrics.unlink()
    with pytest.raises(SystemExit, match=r"seed=0 has no metrics over training, which metrics.js"):
        figures.main(["curves", str(featured), "x.png"])
