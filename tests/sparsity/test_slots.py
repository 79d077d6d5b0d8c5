"""The inner optimizer's slots."""

import optax
import pytest

from cka_sr_jax.sparsity import make_rule, rst, sparsify
from tests.sparsity.naive import COMMON, layers


@pytest.mark.parametrize(
    "inner",
    [
        optax.flatten(optax.adam(0.01)),
        optax.sm3(0.01),
        optax.lbfgs(),
        optax.scale_by_lbfgs(),  # its memory is several arrays of a parameter's shape in one
    ],
)
def test_slots_that_cannot_be_emptied_are_refused_at_the_start(inner):
    with pytest.raises(ValueError, match="slots are not arranged as the parameters"):
        sparsify(inner, make_rule("rigl", **COMMON)).init(layers())
    sparsify(inner, rst(0.5)).init(layers())
