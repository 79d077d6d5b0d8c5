"""Finished runs from folders, CSV files and JSON-lines files, and back."""

import json
import shutil

import numpy as np
import pytest

from cka_sr_jax.analysis.commands import check_alike
from cka_sr_jax.analysis.rows import config_row, write_csv
from cka_sr_jax.analysis.runs import (
    Run,
    load_runs,
    main,
    read_runs,
    run_row,
    write_jsonl,
)


def test_a_csv_without_a_newer_field_has_its_default(grid, tmp_path):
    rows = read_runs([grid])
    older = [{name: row[name] for name in row if name != "penalty.similarity"} for row in rows]
    write_csv(older, tmp_path / "older.csv")
    assert read_runs([tmp_path / "older.csv"]) == rows
    with pytest.raises(ValueError, match="have one config, seed included"):
        read_runs([grid, tmp_path / "older.csv"])


def test_an_option_that_a_run_does_not_set_has_the_default_of_its_model(grid, tmp_path):
    source = min(grid.rglob("result.json")).parent
    for name, options in (("dropping", {"keep_rates": (0.5,)}), ("whole", {})):
        shutil.copytree(source, tmp_path / name)
        config = json.loads((source / "config.json").read_text())
        config["model"] = {"name": "vit-micro", "options": options}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    rows = read_runs([tmp_path / "dropping", tmp_path / "whole"])
    assert [row["model.options.keep_rates"] for row in rows] == [(0.5,), ()]


def test_a_run_is_named_by_its_folder_or_a_grid_s(grid):
    every = read_runs([grid])
    runs = sorted({path.parent for path in grid.glob("*/result.json")})
    assert [read_runs([run])[0] for run in runs] == every


def test_a_run_that_occurs_twice_is_refused(grid, tmp_path):
    file = tmp_path / "runs.csv"
    write_csv(read_runs([grid])[-1:], file)
    with pytest.raises(ValueError, match=r"rst0.051 and .*runs.csv, line 2 have one config, seed"):
        read_runs([grid, file])
    with pytest.raises(ValueError, match="have one config"):
        read_runs([file, file])


def test_values_are_the_same_from_a_folder_and_from_a_csv(tmp_path):
    config = {
        "penalty": {"sync": True},
        "optimizer": {"decay_at": [0.5], "learning_rate": 1e-05},
        "model": {
            "options": {"hidden": [300, 100], "none": None, "empty": "", "nan": float("nan")}
        },
        "sparsity": {"exclude": ["head/kernel"]},
    }
    row = config_row(config) | {"test.accuracy": 0.5, "test.loss": 1.0}
    assert row["penalty.sync"] is True
    assert row["optimizer.decay_at"] == (0.5,)
    assert row["model.options.none"] is row["model.options.empty"] is None
    write_csv([row], tmp_path / "runs.csv")
    (again,) = read_runs([tmp_path / "runs.csv"])
    assert {name: str(again[name]) for name in row} == {
        name: str(value) for name, value in row.items()
    }
    assert {type(again[name]) for name in row} == {type(value) for value in row.values()}
    check_alike([row, again], allowed=[])


def test_a_file_that_is_not_of_runs_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# Title\n\na, b\n")
    with pytest.raises(ValueError, match=r"README.md is not a CSV of runs, since it has"):
        read_runs([tmp_path / "README.md"])
    (tmp_path / "table.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"table.png is not a CSV of runs"):
        read_runs([tmp_path / "table.png"])
    for text in ("{", "[]", '{"config": {}}', '{"config": {}, "result": []}', "a, b"):
        (tmp_path / "runs.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"line 1 of .*runs.jsonl is not a stored run"):
            load_runs([tmp_path / "runs.jsonl"])
    with pytest.raises(ValueError, match="holds no finished run"):
        load_runs([tmp_path])


@pytest.mark.parametrize("text", ["", '{"test": {"acc', "[]", "3"])
@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("result.json", "delete it and give the run's command again"),
        ("config.json", "restore it, or leave its folder out"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_its_cure(grid, text, name, cure):
    file = grid / "rst0.050" / name
    file.write_text(text)
    for read in (read_runs, load_runs):
        with pytest.raises(ValueError, match=rf"{name} is damaged, as it holds no JSON .*: {cure}"):
            read([grid])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"test": {"accuracy": 0.5}}, "has no test.loss, as every run and lottery of images has"),
        ({"test": {"loss": None}, "devices": "many"}, "has devices='many': expected a count and a"),
        (
            {"test": {"loss": None}, "devices": 4},
            "has devices=4: expected a count and a kind",
        ),
        (
            {"test": {"loss": None}, "flops": "abc"},
            "has flops='abc': expected a number, so",
        ),
        ({"test": {"loss": 0.5, "accuracy": True}}, "has test.accuracy=True: expected a number"),
    ],
)
def test_a_result_that_no_run_writes_is_refused(grid, tmp_path, result, message):
    (grid / "rst0.050" / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=f"rst0.050/result.json {message}"):
        read_runs([grid])
    (tmp_path / "runs.jsonl").write_text(json.dumps({"config": {}, "result": result}) + "\n")
    with pytest.raises(ValueError, match=f"runs.jsonl, line 1 {message}"):
        read_runs([tmp_path / "runs.jsonl"])


def test_a_json_lines_file_holds_the_whole_runs(featured, tmp_path, capsys):
    file = tmp_path / "new" / "runs.jsonl"
    main([str(featured), str(file)])
    assert capsys.readouterr().out == f"{file} holds 4 runs.\n"
    runs, again = load_runs([featured]), load_runs([file])
    assert [run.name for run in again] == [f"{file}, line {i}" for i in (1, 2, 3, 4)]
    for run, stored in zip(runs, again, strict=True):
        assert run.folder.name in run.name
        assert stored == run._replace(name=stored.name, folder=None)
        assert stored.metrics[0]["cka_within_stage"] == 0.5
        assert stored.cka_matrix["features"] == ["stage1.0", "stage1.1", "stage2.0"]
        np.testing.assert_array_equal(
            np.diag(stored.cka_matrix["values"]), 1 - run.config["penalty"]["beta"]
        )
    assert read_runs([file]) == read_runs([featured])


def test_a_run_without_metrics_and_matrix_is_stored_too(grid, tmp_path):
    write_jsonl(load_runs([grid]), tmp_path / "runs.jsonl")
    assert read_runs([tmp_path / "runs.jsonl"]) == read_runs([grid])
    assert load_runs([tmp_path / "runs.jsonl"])[0].cka_matrix is None


def test_a_stored_run_is_never_overwritten(grid, tmp_path):
    """Also where the new name was forgotten, so that the last of the runs takes its place."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    runs = load_runs([grid])
    write_jsonl(runs[:2], one)
    write_jsonl(runs[2:], two)
    before = two.read_bytes()
    with pytest.raises(SystemExit, match=r"two.jsonl exists and would be overwritten: name a new"):
        main([str(one), str(two)])
    with pytest.raises(SystemExit, match=r"grid exists and would be overwritten"):
        main([str(one), str(grid)])
    assert two.read_bytes() == before
    main([str(one), str(two), str(tmp_path / "both.jsonl")])
    assert read_runs([tmp_path / "both.jsonl"]) == read_runs([grid])


def test_a_run_is_stored_once(grid, tmp_path):
    file = tmp_path / "runs.jsonl"
    with pytest.raises(SystemExit, match=r"error: .* and .* have one config, seed included: name"):
        main([str(grid), str(grid), str(file)])
    assert not file.exists()


def test_the_command_names_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* holds no finished run"):
        main([str(tmp_path), str(tmp_path / "runs.jsonl")])


def test_small_weights_among_the_kept(grid, tmp_path):
    """Of 1,000 weights 50 are kept, and of those 10 are small: 960 with the pruned ones."""
    file = grid / "rst0.050" / "result.json"
    result = json.loads(file.read_text()) | {"epsilon_sparsity": {"0.01": 0.96}}
    file.write_text(json.dumps(result))
    (row,) = (row for row in read_runs([grid]) if row["epsilon_sparsity.0.01"])
    assert row["kept_below.0.01"] == pytest.approx(10 / 50)
    assert row["kept_below.0.001"] is None
    write_csv([row], tmp_path / "runs.csv")
    assert read_runs([tmp_path / "runs.csv"]) == [row]
    assert "kept_below" not in (tmp_path / "runs.csv").read_text()  # it might go out of date
    for other in ({"sparsity.exclude": ("head/kernel",)}, {"test.loss": None}):
        write_csv([row | other], tmp_path / "runs.csv")
        assert read_runs([tmp_path / "runs.csv"])[0]["kept_below.0.01"] is None


def test_a_row_has_the_mean_rank_and_the_cka_of_neighbors_in_a_stage():
    names = ["one.0", "one.1", "one.2", "two.0"]
    values = [[1, 0.9, 0.1, 0], [0.9, 1, 0.4, 0], [0.1, 0.4, 1, 0.99], [0, 0, 0.99, 1]]
    result = {"test": {"loss": 1.0}, "effective_rank": {"one.0": 4.0, "one.1": 2.0}}
    matrix = {"features": names, "values": values}
    row = run_row(Run("made up", {"seed": 0}, result, cka_matrix=matrix))
    assert row["effective_rank"] == 3
    assert (row["cka_least_neighbors"], row["cka_most_neighbors"]) == (0.4, 0.9)
    row = run_row(Run("made up", {"seed": 0}, {"test": {"loss": 1.0}}))
    assert row["effective_rank"] is row["cka_least_neighbors"] is None
