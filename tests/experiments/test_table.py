"""Tables from stored results: hand-made runs, and back from a CSV."""

import json

import pytest

from cka_sr_jax.experiments.rows import read_runs, write_csv
from cka_sr_jax.experiments.table import main, summary_table

PNG = b"\x89PNG"


@pytest.fixture
def grid(tmp_path):
    """Four finished runs of made-up accuracies, and one that is not finished."""
    accuracies = {("rst", 0.05): (0.5, 0.7), ("rigl", 0.05): (0.8,), ("rigl", 0.01): (0.4,)}
    for (rule, density), values in accuracies.items():
        for seed, accuracy in enumerate(values):
            folder = tmp_path / "grid" / f"{rule}{density}{seed}"
            folder.mkdir(parents=True)
            config = {
                "seed": seed,
                "data": {"dir": f"somewhere{seed}"},
                "sparsity": {"rule": rule, "density": density, "exclude": []},
            }
            (folder / "config.json").write_text(json.dumps(config))
            result = {"test": {"accuracy": accuracy, "loss": 1.0}, "density": density}
            (folder / "result.json").write_text(json.dumps(result))
    (tmp_path / "grid" / "begun").mkdir()
    (tmp_path / "grid" / "begun" / "config.json").write_text("{}")
    return tmp_path / "grid"


TABLE = """\
| rule | 0.05 | 0.01 |
| --- | ---: | ---: |
| rigl | 80.00 (1) | 40.00 (1) |
| rst | 60.00 ± 14.14 (2) |  |"""


def test_table_and_csv(grid, tmp_path, capsys):
    rows = read_runs([grid])
    assert len(rows) == 4
    assert {"seed", "sparsity.rule", "sparsity.density"} <= rows[0].keys()
    assert not {"data.dir", "sparsity.exclude"} & rows[0].keys()  # a place, and one value
    assert summary_table(rows, ["sparsity.rule"], "sparsity.density") == TABLE
    file = tmp_path / "out" / "runs.csv"
    write_csv(rows, file)
    again = read_runs([file])
    assert [row["test.accuracy"] for row in again] == [row["test.accuracy"] for row in rows]
    assert summary_table(again, ["sparsity.rule"], "sparsity.density") == TABLE
    png = tmp_path / "table.png"
    main([str(file), "--columns=sparsity.density", f"--png={png}"])
    assert capsys.readouterr().out.strip() == TABLE
    assert png.read_bytes().startswith(PNG)


def test_cells_hold_runs_that_differ_in_seed_alone(grid, capsys):
    with pytest.raises(SystemExit, match=r"differ in sparsity.density \(0.01, 0.05\)"):
        main([str(grid)])
    main([str(grid), "--columns=sparsity.density", "--value=explored"])  # these runs have none
    assert capsys.readouterr().out.count("%") == 0


def test_refusals(grid, tmp_path):
    with pytest.raises(SystemExit, match="holds no finished run"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Unknown field of these runs: 'sparsity.rul'"):
        main([str(grid), "--rows=sparsity.rul"])
