"""The rules by name: `make_rule("rigl", density=0.05, end_step=10_000)`."""

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
    "dst": "learn_masks(optimizer, dst(alpha=...))",
    "grasp": "static(grasp(loss, params, batch, density))",
    "ntt": "static(ntt(model, params, batches, density).masks)",
    "snip": "static(snip(loss, params, batch, density))",
    "sr_ste": "learn_masks(optimizer, sr_ste(n=2, m=4))",
    "str": "learn_masks(optimizer, soft_threshold())",
    "synflow": "static(synflow(model, params, inputs, density))",
}


def make_rule(name: str, **options: Any) -> Rule:
    """The rule of this name: `make_rule("rst", density=0.05)` is `rst(density=0.05)`.

    Raises:
      ValueError: an unknown rule; an option that the rule does not have, or one that it misses.
    """
    if name in ELSEWHERE:
        raise ValueError(f"{name!r} is no rule: write {ELSEWHERE[name]}.")
    if name not in RULES:
        raise ValueError(unknown("sparsity rule", name, RULES))
    signature = inspect.signature(RULES[name])
    for option in options:
        if option not in signature.parameters:
            others = [rule for rule in RULES if option in inspect.signature(RULES[rule]).parameters]
            if others:
                raise ValueError(
                    f"Sparsity rule {name!r} has no option {option!r}, which {', '.join(others)} "
                    f"have: it takes {', '.join(signature.parameters) or 'none'}."
                )
            raise ValueError(
                unknown(f"option of sparsity rule {name!r}:", option, signature.parameters)
            )
    for option, parameter in signature.parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"Sparsity rule {name!r} needs the option {option!r}.")
    return RULES[name](**options)
