"""How similar neighboring layers are: the table of hand-made runs."""

import pytest

from cka_sr_jax.analysis.neighbor_cka import main
from cka_sr_jax.analysis.runs import Run, load_runs, write_jsonl


def run_of(beta, seed, first, second, **penalty):
    """A run of three layers with these CKA between neighbors."""
    values = [[1.0, first, 0.0], [first, 1.0, second], [0.0, second, 1.0]]
    config = {"seed": seed, "penalty": {"beta": beta, **penalty}, "sparsity": {"rule": "rst"}}
    return Run("made up", config, {}, cka_matrix={"features": ["a", "b", "c"], "values": values})


def test_ranges_of_the_least_and_the_most_similar_neighbors(tmp_path, capsys):
    runs = [run_of(0.0, 0, 0.9, 0.8), run_of(0.0, 1, 0.7, 0.95), run_of(0.01, 0, 0.25, 0.5)]
    write_jsonl(runs, tmp_path / "runs.jsonl")
    main([str(tmp_path / "runs.jsonl")])
    assert capsys.readouterr().out.splitlines() == [
        "| rule | beta | runs | least similar neighbors | most similar neighbors |",
        "| --- | --- | ---: | ---: | ---: |",
        "| rst | 0 | 2 | 0.70 to 0.80 | 0.90 to 0.95 |",
        "| rst | 0.01 | 1 | 0.25 to 0.25 | 0.50 to 0.50 |",
    ]


def test_kinds_of_penalty_are_rows_of_their_own(tmp_path, capsys):
    log = {"energy": "log", "pairs": "neighbors"}
    runs = [run_of(0.01, 0, 0.9, 0.8), run_of(0.01, 0, 0.5, 0.6, **log)]
    write_jsonl(runs, tmp_path / "runs.jsonl")
    main([str(tmp_path / "runs.jsonl")])
    assert [line.split(" | ")[1:5] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["group, none", "0.01", "1", "0.80 to 0.80"],
        ["neighbors, log", "0.01", "1", "0.50 to 0.50"],
    ]


def test_runs_without_a_matrix_are_named(grid, tmp_path):
    assert load_runs([grid])[0].cka_matrix is None
    with pytest.raises(SystemExit, match=r"error: .*rigl0.010/report is missing, and CKA with it"):
        main([str(grid)])
    (grid / "rigl0.010" / "report").mkdir()
    with pytest.raises(SystemExit, match=r"rigl0.010 has no CKA matrix: its model sows no two"):
        main([str(grid)])
    with pytest.raises(SystemExit, match="holds no finished run"):
        main([str(tmp_path)])
