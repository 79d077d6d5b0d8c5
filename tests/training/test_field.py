"""One field of the table: its range, and the sentence that refuses a value."""

import pytest

from cka_sr_jax.training.field import Field, Range


def test_a_range_is_written_as_in_mathematics():
    assert 0 in Range.parse("[0, 1)")
    assert 1 not in Range.parse("[0, 1)")
    assert 0 not in Range.parse("(0, inf)")
    assert 1e9 in Range.parse("(0, inf)")


RATE = Field(0.5, "A rate.", within="(0, 1]")
COUNT = Field(2, "How many.", unit="steps", within="[1, inf)")
TIMES = Field((0.1, 0.2), "When.", increasing=True)
BOUND = Field(None, "A bound.", kind=float)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (RATE, 2.0, "x=2.0: expected a number in (0, 1], such as 0.5."),
        (RATE, True, "x=True: expected a number in (0, 1], such as 0.5 (a rate)."),
        (RATE, float("nan"), "x=nan: expected a finite number, such as 0.5."),
        (RATE, 1, None),  # a whole number is a float too
        (COUNT, 0, "x=0: expected a whole number of steps, at least 1, such as 2."),
        (TIMES, (0.2, 0.1), "x=(0.2, 0.1): expected numbers, increasing, such as (0.1, 0.2)."),
        (BOUND, None, None),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_sentence(field, value, problem):
    assert field.problem("x", value) == problem
