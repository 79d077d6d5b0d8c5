import pytest

from cka_sr_jax.report.markdown import markdown_table


def test_first_column_left_and_others_right():
    assert markdown_table(["rule", "a", "b"], [["rst", "1", "2"]]).splitlines() == [
        "| rule | a | b |",
        "| --- | ---: | ---: |",
        "| rst | 1 | 2 |",
    ]


def test_columns_are_aligned_as_asked():
    assert markdown_table(["a", "b"], [], "rl") == "| a | b |\n| ---: | --- |"


def test_lines_that_do_not_fit_the_header_are_refused():
    with pytest.raises(ValueError, match="has 1 entries for 2 columns"):
        markdown_table(["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="has 3 entries for 2 columns"):
        markdown_table(["a", "b"], [], "lrr")
