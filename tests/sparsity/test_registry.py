"""Rules by their names, and errors that name the cure."""

import inspect

import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import RULES, get_masks, make_rule, rst, sparsify

# What each rule needs, apart from its density.
NEEDED = {
    "channels": {"end_step": 75},
    "gmp": {"end_step": 75},
    "granet": {"end_step": 750},
    "mest": {"end_step": 750},
    "rigl": {"end_step": 750},
    "rst": {},
    "set": {"end_step": 750},
    "snfs": {"end_step": 750},
}


def test_every_rule_is_reached_by_its_name():
    names = "channels dense gmp granet mest rigl rst set snfs static"
    assert sorted(RULES) == names.split()


def first_masks(rule):
    params = {"w": np.ones((20, 30), np.float32)}
    return get_masks(sparsify(optax.sgd(0.1), rule).init(params))["w"]


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"dense", "static"}))
def test_density_is_the_first_argument(name):
    options = NEEDED[name] | {"update_every": 5} if NEEDED[name] else {}
    by_position = first_masks(make_rule(name, 0.3, **options))
    np.testing.assert_array_equal(by_position, first_masks(make_rule(name, density=0.3, **options)))


def test_arguments_are_those_of_the_rule():
    np.testing.assert_array_equal(
        first_masks(make_rule("rst", 0.1, "uniform", exact=False)),
        first_masks(rst(0.1, "uniform", exact=False)),
    )
    masks = {"w": np.arange(600).reshape(20, 30) % 2}
    np.testing.assert_array_equal(first_masks(make_rule("static", masks)), masks["w"])


@pytest.mark.parametrize("name", RULES)
def test_every_argument_is_documented(name):
    arguments = inspect.getdoc(RULES[name]).partition("Args:")[2].partition("Raises:")[0]
    for parameter in inspect.signature(RULES[name]).parameters:
        assert f"\n  {parameter}: " in arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_rule("rts", density=0.1), "Unknown sparsity rule 'rts': did you mean 'rst'?"),
        (lambda: make_rule("rst", densty=0.1), "'densty': did you mean 'density'?"),
        (
            lambda: make_rule("rst"),
            "Sparsity rule 'rst' needs density, the share of weights to keep: density=0.05 for",
        ),
        (
            lambda: make_rule("rigl", density=0.1),
            "'rigl' needs end_step, the last step that may change the masks: three quarters of the "
            "run is sensible, such as end_step=7500 of 10,000",
        ),
        (lambda: make_rule("static"), "'static' needs masks, a pytree of masks like the param"),
        (
            lambda: make_rule("rst", sparsity=0.9),
            r"'rst' takes the density instead of sparsity=0.9: pass density = 1 - sparsity = 0.1\.",
        ),
        (
            lambda: make_rule("rigl", sparsity="90 %", end_step=100),
            r"sparsity='90 %': pass density = 1 - sparsity\.",
        ),
        (
            lambda: make_rule("dense", density=0.1),
            "Sparsity rule 'dense' has no option 'density', which .* have: it takes none",
        ),
        (
            lambda: make_rule("dense", 0.1),
            r"'dense' takes 0 arguments without a name \(none\) and got 1: write the others as",
        ),
        (
            lambda: make_rule("rigl", 0.1, "erk", 7500),
            r"'rigl' takes 2 arguments without a name \(density, distribution\) and got 3",
        ),
        (lambda: make_rule("rst", density=0.0), "density=0.0 is not in"),
        (lambda: make_rule("rst", density=None), "density=None is not in"),
        (
            lambda: make_rule("snip", density=0.1),
            r"'snip' is a method of another kind than the rules: write static\(snip\(",
        ),
        (
            lambda: make_rule("snfs", density=0.1, end_step=100, grow="random"),
            "Sparsity rule 'snfs' has no option 'grow', which granet, mest, rigl, set",
        ),
        (
            lambda: make_rule("rst", density=0.1, end_step=100),
            "Sparsity rule 'rst' has no option 'end_step', which channels, gmp",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
