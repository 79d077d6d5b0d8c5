"""How a config's layers share the density: the library's distributions, with a config's cures."""

from __future__ import annotations

from cka_sr_jax.sparsity import DISTRIBUTIONS
from cka_sr_jax.sparsity.distributions import Distribution, Shapes


def distribution(name: str) -> Distribution:
    """The distribution of that name, which tells a config what to do if the model does not suit.

    The library's advice is an argument that no field of a config stands for.
    """

    def shared(shapes: Shapes, density: float) -> dict[str, float]:
        try:
            return DISTRIBUTIONS[name]()(shapes, density)
        except ValueError as error:
            reason, unclear, _ = str(error).partition(" for ")
            if not (unclear and "layer is not clear" in reason):
                raise
            raise ValueError(
                f"sparsity.distribution={name!r} does not fit this model, because {reason}: use "
                "another distribution, such as 'erk', or a model whose first layer is a "
                "convolution and whose classifier is its only layer of rank 2."
            ) from None

    return shared
