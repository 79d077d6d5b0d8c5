"""Tables from stored results, of hand-made runs."""

import json

import numpy as np
import pytest

from cka_sr_jax.analysis import table
from cka_sr_jax.analysis.rows import RESULTS, write_csv
from cka_sr_jax.analysis.runs import read_runs
from cka_sr_jax.analysis.table import cell_values, main, summary_table
from cka_sr_jax.training import default_config
from cka_sr_jax.training.config import RESUMABLE, flatten

TABLE = """\
| rule | 0.01 | 0.05 |
| --- | ---: | ---: |
| rigl | 40.00 (1) | 80.00 (1) |
| rst |  | 60.00 ± 14.14 (2) |"""


def test_table_and_csv(grid, tmp_path, capsys):
    rows = read_runs([grid])
    assert len(rows) == 4
    # The whole config, but for what does not change the run.
    names = flatten(default_config()).keys() | {*RESULTS, "devices"}
    assert rows[0].keys() == names - {*RESUMABLE}
    file = tmp_path / "out" / "runs.csv"
    write_csv(rows, file)
    assert read_runs([file]) == rows
    by_row = ["sparsity.rule"]
    assert summary_table(cell_values(rows, by_row, "sparsity.density"), by_row) == TABLE
    main([str(file), "--columns=sparsity.density"])
    assert capsys.readouterr().out.strip() == TABLE  # a CSV has no unfinished runs to tell of


def test_cells_hold_runs_that_differ_in_seed_alone(grid, capsys):
    with pytest.raises(SystemExit, match=r"differ in sparsity.density \(0.01, 0.05\)"):
        main([str(grid)])
    main([str(grid), "--columns=sparsity.density", "--value=explored"])  # these runs have none
    assert capsys.readouterr().out.splitlines()[2:4] == ["| rigl |  |  |", "| rst |  |  |"]


def test_shares_are_in_percent_and_losses_are_not(grid, capsys):
    for value, text in (("density", "5.00"), ("test.loss", "1.00")):
        main([str(grid), "--rows=sparsity.rule,sparsity.density", f"--value={value}"])
        assert f"| rst | 0.05 | {text} ± 0.00 (2) |" in capsys.readouterr().out
    main([str(grid), "--rows=sparsity.rule,sparsity.density", "--value=test.loss", "--scale=10"])
    assert "| rst | 0.05 | 10.00 ± 0.00 (2) |" in capsys.readouterr().out


def test_refusals(grid, tmp_path):
    with pytest.raises(SystemExit, match="holds no finished run"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Unknown field of these runs: 'sparsity.rul'"):
        main([str(grid), "--rows=sparsity.rul", f"--csv={tmp_path / 'runs.csv'}"])
    assert not (tmp_path / "runs.csv").exists()
    with pytest.raises(SystemExit, match=r"figure of a run: 'test.acuracy': did you mean 'te"):
        main([str(grid), "--value=test.acuracy"])


def test_csvs_pool_where_their_configs_agree(grid, tmp_path):
    rows = [row for row in read_runs([grid]) if row["sparsity.rule"] == "rst"]
    files = [tmp_path / f"seed{row['seed']}.csv" for row in rows]
    for row, file in zip(rows, files, strict=True):
        write_csv([row], file)
    assert cell_values(read_runs(files), ["sparsity.rule"]) == {
        ("rst",): {"test.accuracy": [50.0, 70.0]}
    }
    write_csv([rows[1] | {"penalty.samples": 16}], files[1])
    with pytest.raises(SystemExit, match=r"differ in penalty.samples \(16, 8\): name it in --rows"):
        main([*map(str, files)])
    write_csv([rows[1] | {"penalty.samples": 16, "seed": 1, "model.name": "lenet5"}], files[1])
    with pytest.raises(
        SystemExit,
        match=r"in model.name \(lenet5, mlp\) and penalty.samples \(16, 8\): name them in",
    ):
        main([*map(str, files)])
    write_csv([rows[1] | {"penalty.samples": 16}], files[1])
    main([*map(str, files), "--rows=penalty.samples"])


def test_what_is_not_in_the_table_is_said(grid, capsys, tmp_path):
    """One of the folders was begun and has no result."""
    main([str(grid), "--columns=sparsity.density", f"--csv={tmp_path / 'runs.csv'}"])
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"Not finished or failed, and so left out: 1 runs of {grid}."
    )
    main([str(tmp_path / "runs.csv"), "--columns=sparsity.density"])
    assert "left out" not in capsys.readouterr().out
    # A run whose loss is not a number is in the table, which says so.
    (grid / "rst0.050" / "result.json").write_text(
        json.dumps({"test": {"accuracy": 0.1, "loss": None}, "density": 0.05})
    )
    main([str(grid), "--columns=sparsity.density"])
    assert "test loss that is not finite: 1 of these runs." in capsys.readouterr().out


def test_a_place_that_cannot_be_written_to_is_named(grid, tmp_path):
    (tmp_path / "file").write_text("")
    command = [str(grid), "--columns=sparsity.density"]
    with pytest.raises(SystemExit, match=f"error: {tmp_path}/file cannot be used .*: name another"):
        main([*command, f"--csv={tmp_path / 'file' / 'runs.csv'}"])
    with pytest.raises(SystemExit, match=r"table.xyz is not named so: end it in .png"):
        main([*command, f"--png={tmp_path / 'table.xyz'}"])


def test_runs_on_other_numbers_of_devices_are_not_alike(grid):
    """Each device has BatchNorm statistics and CKA samples of its own."""
    for seed, devices in enumerate(("1 x cpu", "8 x NVIDIA H100")):
        file = grid / f"rst0.05{seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"devices": devices}))
    with pytest.raises(SystemExit, match=r"differ in devices \(1, 8\)"):
        main([str(grid), "--columns=sparsity.density"])


def test_a_picture_without_columns_has_the_rows_side_by_side(grid, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "write_png", lambda figure, path: drawn.append((figure, path)))
    main([str(grid), "--rows=sparsity.rule,sparsity.density", "--png=x.png"])
    main([str(grid), "--columns=sparsity.density", "--png=y.png"])
    (beside,), (by_column,) = (figure.axes for figure, _ in drawn)
    assert [path for _, path in drawn] == ["x.png", "y.png"]
    names = [label.get_text() for label in beside.get_xticklabels()]
    assert names == ["rigl 0.01", "rigl 0.05", "rst 0.05"]
    assert beside.get_xlabel() == "sparsity.rule,sparsity.density"
    assert beside.get_ylabel() == by_column.get_ylabel() == "test.accuracy x 100"
    np.testing.assert_allclose(beside.containers[0][0].get_xydata()[:, 1], [40, 80, 60])
    assert by_column.get_xlabel() == "sparsity.density"
    labels = [text.get_text() for text in by_column.get_legend().get_texts()]
    assert labels == ["rigl", "rst"]
    rigl, rst = by_column.containers
    np.testing.assert_allclose(rigl[0].get_xydata(), [[0, 40], [1, 80]])
    np.testing.assert_allclose(rst[0].get_xydata(), [[1, 60]])


def test_selection_on_the_test_set_is_said(grid, capsys):
    for run in grid.glob("*"):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"eval": {"select": "best-test"}}))
    main([str(grid), "--columns=sparsity.density"])
    assert "weights were selected on the test set" in capsys.readouterr().out
