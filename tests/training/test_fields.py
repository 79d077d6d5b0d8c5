"""The table of fields: what it holds fits itself, and what does not fit it is refused."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cka_sr_jax.training import ConfigError, default_config
from cka_sr_jax.training.config import flatten, validate
from cka_sr_jax.training.field import Field, Range
from cka_sr_jax.training.fields import EVERYDAY, FIELDS, FREE_GROUPS, GROUPS, unknown_field
from cka_sr_jax.training.methods import DEFAULT_METHOD, METHOD_NAMES

CONVERTED = [(int, float), (bool, float)]  # by ConfigDict

NUMERIC = {
    name: field
    for name, field in FIELDS.items()
    if field.kind in (int, float) or (field.kind is tuple and field.items is not str)
}


def config_with(name, value):
    config = default_config()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({name: value})
    return config


def number_type(field):
    return field.items if field.kind is tuple else field.kind


def inside(field):
    """Numbers in the field's range."""
    allowed = Range.parse(field.within)
    if number_type(field) is int:
        bounds = [None if math.isinf(bound) else int(bound) for bound in allowed[:2]]
        return st.integers(*bounds).filter(lambda number: number in allowed)
    bounds = [None if math.isinf(bound) else bound for bound in allowed[:2]]
    numbers = st.floats(*bounds, allow_nan=False, allow_infinity=False)
    return numbers.filter(lambda number: number in allowed)


def outside(field):
    """Numbers that the field cannot be."""
    allowed, kind = Range.parse(field.within), number_type(field)
    numbers = st.integers() if kind is int else st.floats(allow_nan=False, allow_infinity=False)
    low, high = (st.just(kind(b)) if math.isfinite(b) else st.nothing() for b in allowed[:2])
    choices = [(numbers | low | high).filter(lambda number: number not in allowed)]
    if math.isinf(allowed.low) and math.isinf(allowed.high):
        choices = []
    if kind is float:
        choices.append(st.sampled_from([math.nan, math.inf, -math.inf]))
    return st.one_of(choices)


def is_refused(name, value):
    """Before all else, in one sentence that names the field and the value."""
    with pytest.raises(ConfigError) as error:
        validate(config_with(name, value), devices=1)
    message = str(error.value)
    assert message.startswith((f"{name}={value!r}: expected ", f"Unknown {name} {value!r}"))
    assert message.endswith((".", "?"))
    assert "\n" not in message


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_outside_the_range_are_refused(name):
    field = NUMERIC[name]

    @given(outside(field))
    def check(number):
        is_refused(name, (number,) if field.kind is tuple else number)

    check()


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_inside_the_range_are_accepted(name):
    field = NUMERIC[name]

    @given(inside(field))
    def check(number):
        assert field.problem(name, (number,) if field.kind is tuple else number) is None

    check()


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.choices])
@given(value=st.text())
def test_strings_that_are_no_choice_are_refused(name, value):
    problem = FIELDS[name].problem(name, value)
    if value in FIELDS[name].choices:
        assert problem is None
    else:
        assert problem.startswith(f"Unknown {name} {value!r}")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in FREE_GROUPS])
def test_other_types_are_refused(name):
    field = FIELDS[name]
    of_types = {bool: True, int: 3, float: 0.5, str: "name", tuple: (object(),)}
    for kind, value in of_types.items():
        if kind is not field.kind and (kind, field.kind) not in CONVERTED:
            is_refused(name, value)
    if field.default is None:
        assert field.problem(name, None) is None
    else:
        is_refused(name, None)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.increasing])
@given(st.lists(st.floats(0.01, 0.99), min_size=2))
def test_tuples_that_do_not_increase_are_refused(name, numbers):
    increasing = all(number > before for before, number in itertools.pairwise(numbers))
    assert (FIELDS[name].problem(name, tuple(numbers)) is None) == increasing


def test_the_table_fits_itself():
    for name, field in FIELDS.items():
        assert field.problem(name, field.default) is None or field.kind is dict
        assert field.example is None or field.problem(name, field.example) is None
        assert field.kind is not object, f"{name} may be None and needs a kind"
        assert field.meaning.endswith(".")
        assert field.meaning[0].isupper()
        group = name.split(".")[0] if "." in name else ""
        assert group in GROUPS
    assert FIELDS["sparsity.rule"].choices == METHOD_NAMES
    assert FIELDS["sparsity.rule"].default == DEFAULT_METHOD


def test_the_default_config_has_each_field_and_its_type():
    config = default_config()
    validate(config, devices=1)
    assert set(flatten(config)) == set(FIELDS) - set(FREE_GROUPS)
    assert config.get_ref("seed").get_type() is int
    # Unset options keep the type of what may be set.
    config.sparsity.update_every = 50
    with pytest.raises(TypeError):
        default_config().sparsity.update_every = "often"


def test_everyday_names_lead_to_the_fields():
    for name, meant in (
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("model.hidden", "model.options.hidden"),
        ("sparsity.densty", "sparsity.density"),
    ):
        assert unknown_field(name) == f"Unknown config field {name!r}: did you mean {meant!r}?"
    assert not EVERYDAY.keys() & {field.rpartition(".")[2] for field in FIELDS}
    groups = tuple(f"{group}." for group in FREE_GROUPS)
    assert all(field in FIELDS or field.startswith(groups) for field in EVERYDAY.values())
    config = default_config()
    config.optimizer.lr = 0.1
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.learning_rate'"):
        validate(config, devices=1)


def test_what_is_expected_is_said_in_words():
    said = {
        "a number above 0": Field(1.0, "M.", within="(0, inf)"),
        "a whole number of steps, at least 1": Field(1, "M.", unit="steps", within="[1, inf)"),
        "a share of the run in (0, 1]": Field(1.0, "M.", unit="share of the run", within="(0, 1]"),
        "shares of the run, increasing": Field((), "M.", unit="share of the run", increasing=True),
        "one of a, b": Field("a", "M.", choices=("a", "b")),
        "strings": Field((), "M.", items=str),
        "True or False": Field(None, "M.", kind=bool),
        "a number": Field(0.0, "M."),
    }
    for words, field in said.items():
        assert field.expected == words


def test_a_range_that_is_none_is_an_error():
    with pytest.raises(ValueError, match=r"'0 to 1': expected a range, such as"):
        Range.parse("0 to 1")
