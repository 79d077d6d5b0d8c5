"""Rows as a CSV: what comes back, and what is refused with its file and line."""

import pytest

from cka_sr_jax.analysis.rows import config_row, parse_value, read_csv, write_csv

RESULT = {"test.accuracy": 0.5, "test.loss": None, "devices": 1}


def test_values_are_what_their_text_says():
    texts = ["", "3", "0.5", "1e-05", "(1, 2)", "True", "rst"]
    assert [parse_value(text) for text in texts] == [None, 3, 0.5, 1e-5, (1, 2), True, "rst"]


def test_rows_come_back_with_their_lines(tmp_path):
    file = tmp_path / "runs.csv"
    rows = [config_row({"seed": seed}) | RESULT for seed in (0, 1)]
    write_csv(rows, file)
    assert read_csv(file) == {f"{file}, line {i + 2}": row for i, row in enumerate(rows)}
    header, first, second = file.read_text().splitlines()
    file.write_text("\n".join([header, "", first, "", second]))  # blank lines count as lines
    assert list(read_csv(file)) == [f"{file}, line 3", f"{file}, line 5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "test.accuracy,test.loss\n0.5,1.0\n0.5\n",
            "line 3 has 1 values and the header has 2: res",
        ),
        (
            "test.accuracy,test.loss\n0.5,1.0,7\n",
            "line 2 has 3 values and the header has 2: restor",
        ),
        ("test.accuracy,test.loss\nabc,1.0\n", "line 2 has test.accuracy='abc': expected a number"),
        (
            "test.accuracy,test.loss,devices\n1,1,many\n",
            "line 2 has devices='many': expected a numb",
        ),
        (
            "test.accuracy\n0.5\n",
            "is not a CSV of runs, since it has no column test.loss: name one",
        ),
        ("", "is not a CSV of runs, since it has no column test.accuracy: name one that"),
        ("test.accuracy,test.loss\n\x00", "is not a CSV of runs|line 2 has 1 values"),
    ],
)
def test_a_damaged_file_is_one_sentence(text, message, tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^{file},? ({message})"):
        read_csv(file)
