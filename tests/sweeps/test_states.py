"""What a point's directory says."""

from cka_sr_jax.sweeps.states import ended, forget_failure, record_failure


def test_a_point_runs_until_it_has_finished_or_failed(tmp_path):
    folder = tmp_path / "seed=1"
    assert ended(folder) == ""
    assert record_failure(folder, "out of luck", "Traceback ...") == "failed: out of luck"
    assert (folder / "failed.txt").read_text() == "out of luck\n\nTraceback ..."
    assert ended(folder) == "failed before: out of luck"
    assert ended(folder, retry=True) == ""
    forget_failure(folder)
    assert ended(folder) == ""
    (folder / "failed.txt").write_bytes(b"\xff\n")
    assert ended(folder) == "failed before: \N{REPLACEMENT CHARACTER}"
    (folder / "failed.txt").write_text("")
    assert "does not say why" in ended(folder)
    forget_failure(folder)
    for damaged in ("", "[]", "[" * 100_000, "9" * 400):
        (folder / "result.json").write_text(damaged)
        assert ended(folder) == ""
    (folder / "result.json").write_text("{}")
    assert ended(folder) == ended(folder, retry=True) == "finished before"
