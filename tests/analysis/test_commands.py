"""What the commands share: values as text, checks, notes and error lines."""

import pytest

from cka_sr_jax.analysis.commands import (
    cell_text,
    check_alike,
    error_line,
    in_order,
    notes,
    row_fields,
)


def test_values_are_in_order():
    values = [1e-3, "b", 0.0, 1e-5, "a", 1e-4]
    assert sorted(values, key=in_order) == ["a", "b", 0.0, 1e-5, 1e-4, 1e-3]


def test_values_as_text():
    assert [cell_text(value) for value in (1e-4, 0.5, 3, None, (1, 2), "rst")] == [
        "0.0001", "0.5", "3", "None", "(1, 2)", "rst",
    ]  # fmt: skip


def test_rows_must_agree_but_for_what_is_allowed_and_for_results():
    rows = [
        {"seed": 0, "model.name": "mlp", "test.accuracy": 0.1},
        {"seed": 1, "model.name": "lenet5", "test.accuracy": 0.2},
    ]
    check_alike(rows, allowed=["seed", "model.name"])
    with pytest.raises(ValueError, match=r"in model.name \(lenet5, mlp\): name it in --rows"):
        check_alike(rows, allowed=["seed"])
    with pytest.raises(ValueError, match=r"differ in seed .* and model.name .*: drop them\."):
        check_alike(rows, allowed=[], remedy="drop {}")


def test_notes_tell_of_selection_on_test_data_and_of_runs_that_diverged():
    good = {"eval.select": "last", "test.loss": 1.0}
    assert notes([good]) == []
    found = notes([good, good | {"eval.select": "best-test"}, good | {"test.loss": None}])
    assert "were selected on the test set" in found[0]
    assert found[1].endswith("not finite: 1 of these runs.")


def test_an_error_line_names_the_file_and_the_cure():
    error = FileNotFoundError(2, "No such file or directory", "runs/x")
    assert error_line(error) == (
        "error: runs/x cannot be used (No such file or directory): name another path."
    )
    assert error_line(ValueError("no such field.")) == "error: no such field."


def test_the_fields_of_rows_are_named_once_each():
    assert row_fields("a,b", "c") == ["a", "b"]
    assert row_fields("a", None) == ["a"]
    for text in ("", "a,", "a,,b"):
        with pytest.raises(ValueError, match=rf"^--rows={text} has an empty name: name fields sep"):
            row_fields(text, None)
    for text, beside in (("a,a", None), ("b,a", "a")):
        with pytest.raises(ValueError, match=rf"^--rows={text} names a, which is named already"):
            row_fields(text, beside)
