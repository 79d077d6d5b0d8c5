"""docs/config.md is what the table of fields says."""

from pathlib import Path

from cka_sr_jax.training.fields import FIELDS
from cka_sr_jax.training.reference import render

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_what_the_table_renders():
    assert PAGE.read_text() == render(), (
        "write it anew: python -m cka_sr_jax.training.reference > docs/config.md"
    )


def test_each_field_has_one_row():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(FIELDS)


def test_options_name_the_methods_that_take_them():
    rows = {line.split("`")[1]: line for line in render().splitlines() if line.startswith("| `")}
    assert rows["sparsity.momentum"].endswith("| snfs |")
    assert rows["sparsity.start"].endswith("| channels, gmp, granet |")
    assert rows["sparsity.exclude"].endswith("| all but dense |")
