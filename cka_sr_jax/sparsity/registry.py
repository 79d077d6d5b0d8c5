"""The rules by name: `make_rule("rigl", density=0.05, end_step=7500)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cka_sr_jax._errors import unknown
from cka_sr_jax.sparsity.dynamic import mest, rigl, snfs, sparse_evolutionary
from cka_sr_jax.sparsity.fixed import dense, rst, static
from cka_sr_jax.sparsity.gradual import gmp, granet
from cka_sr_jax.sparsity.rule import Rule
from cka_sr_jax.sparsity.structured import channels

RULES: dict[str, Callable[..., Rule]] = {
    "channels": channels,
    "dense": dense,
    "gmp": gmp,
    "granet": granet,
    "mest": mest,
    "rigl": rigl,
    "rst": rst,
    "set": sparse_evolutionary,
    "snfs": snfs,
    "static": static,
}

# Methods of other kinds, and how they are used.
ELSEWHERE = {
    "dst": "learn_masks(optimizer, dst(alpha=5e-6))",
    "grasp": "static(grasp(loss, params, batch, density))",
    "ntt": "static(ntt(model, params, batches, density).masks)",
    "snip": "static(snip(loss, params, batch, density))",
    "sr_ste": "learn_masks(optimizer, sr_ste(n=2, m=4))",
    "str": "learn_masks(optimizer, soft_threshold())",
    "synflow": "static(synflow(model, params, inputs, density))",
}

# What to give for an option that is missing.
NEEDED = {
    "density": "the share of weights to keep: density=0.05 for 95 % sparsity",
    "end_step": (
        "the last step that may change the masks: three quarters of the run is sensible, such as "
        "end_step=7500 of 10,000 steps"
    ),
    "masks": "a pytree of masks like the parameters, such as get_masks(opt_state)",
}


def make_rule(name: str, *arguments: Any, **options: Any) -> Rule:
    """The rule of this name: `make_rule("rst", 0.05)` is `rst(0.05)`.

    The arguments are those of the rule's function, `RULES[name]`, whose docstring describes them.

    >>> import optax
    >>> from cka_sr_jax.sparsity import RULES, make_rule, sparsify
    >>> sorted(RULES)
    ['channels', 'dense', 'gmp', 'granet', 'mest', 'rigl', 'rst', 'set', 'snfs', 'static']
    >>> tx = sparsify(optax.adam(1e-3), make_rule("rigl", density=0.05, end_step=7500))

    Raises:
      ValueError: an unknown rule; an option that the rule lacks or needs; a value that cannot work.
    """
    if name in ELSEWHERE:
        raise ValueError(
            f"{name!r} is a method of another kind than the rules: write {ELSEWHERE[name]}."
        )
    if name not in RULES:
        raise ValueError(unknown("sparsity rule", name, RULES))
    parameters = inspect.signature(RULES[name]).parameters
    by_position = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(arguments) > len(by_position):
        raise ValueError(
            f"Sparsity rule {name!r} takes {len(by_position)} arguments without a name "
            f"({', '.join(by_position) or 'none'}) and got {len(arguments)}: write the others as "
            "option=value."
        )
    for option in options:
        if option not in parameters:
            raise ValueError(_no_such_option(name, option, options[option]))
    given = (*by_position[: len(arguments)], *options)
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in given:
            cure = f", {NEEDED[option]}" if option in NEEDED else ": pass it"
            raise ValueError(f"Sparsity rule {name!r} needs {option}{cure}.")
    return RULES[name](*arguments, **options)


def _no_such_option(name: str, option: str, value: Any) -> str:
    """One sentence on an option that the rule lacks, and what to write in its place."""
    known = inspect.signature(RULES[name]).parameters
    if option == "sparsity" and "density" in known:
        number = isinstance(value, int | float) and 0 <= value < 1
        density = f" = {1 - value:g}" if number else ""
        return (
            f"Sparsity rule {name!r} takes the density instead of sparsity={value!r}: pass "
            f"density = 1 - sparsity{density}."
        )
    others = [rule for rule in RULES if option in inspect.signature(RULES[rule]).parameters]
    if others:
        return (
            f"Sparsity rule {name!r} has no option {option!r}, which {', '.join(others)} have: it "
            f"takes {', '.join(known) or 'none'}."
        )
    return unknown(f"option of sparsity rule {name!r}:", option, known)
