"""The table and the drawing of learned graphs, from runs of a small DAG."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax import workflows
from cka_sr_jax.analysis import open_run
from cka_sr_jax.analysis.run import Run
from cka_sr_jax.analysis.topology import draw_graph, main
from cka_sr_jax.data import load_dataset
from cka_sr_jax.models import edge_matrices, remove_edges
from cka_sr_jax.training import default_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of learned edges and one of a random graph, two steps each."""
    folder = tmp_path_factory.mktemp("dag")
    for graph in ("learned", "random"):
        config = default_config()
        config.model.name = "dag2"
        config.model.options = ConfigDict({"width": 2, "graph": graph})
        if graph == "learned":
            config.model.options.update({"edge_penalty": 2.0, "adaptive": True})
        config.train.steps = 2
        config.train.batch_size = 64
        config.sparsity.rule = "dense"
        config.sparsity.density = 1.0
        config.penalty.beta = 0.0
        workflows.run(config, folder / graph, Console(quiet=True))
    return folder


def test_the_table_is_what_the_network_does_without_the_edges(runs, capsys, monkeypatch):
    variables = open_run(runs / "learned").variables
    rng = np.random.default_rng(0)
    for name in ("stage1_edges", "stage2_edges", "stage3_edges"):  # two steps leave them alike
        variables["params"][name] = rng.uniform(0, 1, 6).astype(np.float32)
    monkeypatch.setattr(Run, "variables", property(lambda run: variables))
    main(["table", str(runs / "learned"), str(runs / "random")])
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert header == [
        "model", "edge penalty", "adaptive", "threshold", "runs", "edges left", "live nodes",
        "validation", "test",
    ]  # fmt: skip
    assert [row[3] for row in rows] == ["0", "0.05", "0.1", "0.2", "0.3", "0.5"]
    # The random graph has none to remove.
    assert {(*row[:3], row[4]) for row in rows} == {("dag2", "2", "yes", "1")}
    assert rows[0][5:7] == ["100.0%", "6.0"]
    assert len({row[5] for row in rows}) >= 3
    run = open_run(runs / "learned")
    data = load_dataset(ConfigDict(dict(run.config)).data)
    images = (data.test_images / np.float32(255) - run_mean(data)) / run_std(data)
    for row in rows:
        params = remove_edges(run.variables["params"], float(row[3]))
        logits = jax.jit(lambda v: run.model.apply(v, jnp.asarray(images), train=False))(
            {**run.variables, "params": params}
        )
        edges = np.concatenate([m[np.tril_indices(3)] for m in edge_matrices(params).values()])
        assert row[5] == f"{np.mean(edges != 0):.1%}"
        accuracy = np.mean(np.asarray(logits).argmax(-1) == data.test_labels)
        assert float(row[8].rstrip("%")) == pytest.approx(100 * accuracy, abs=0.3)  # an image


def run_mean(data):
    return (data.train_images / np.float32(255)).mean()


def run_std(data):
    return (data.train_images / np.float32(255)).std()


def test_the_drawing_has_an_arc_for_each_edge_that_is_left():
    params = {"stage1_edges": jnp.array([1.0, -0.5, 0.04]), "stage2_edges": jnp.ones(3)}
    for threshold, edges in ((0.0, [3, 3]), (0.1, [2, 3])):
        figure = draw_graph(params, threshold)
        assert [len(axes.patches) for axes in figure.axes] == edges
    assert {axes.get_title(loc="left") for axes in figure.axes} == set(edge_matrices(params))


def test_it_is_written_as_png(runs, tmp_path):
    main(["draw", str(runs / "learned"), str(tmp_path / "graph.png"), "--threshold=0.1"])
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_edges_are_refused(runs, tmp_path):
    for arguments, message in (
        (["table", str(runs / "random")], "none of the runs has learned edges"),
        (["draw", str(runs / "random"), str(tmp_path / "a.png")], "the parameters have no edges"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
