"""Layer-wise density: how the layers share a global density.

A distribution is a function `({path: shape}, density) -> {path: density}`. Shapes are those of
matrices [in, out] and convolutions [*taps, in, out] (`Layer.dims`); all formulas are symmetric in
the taps.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping

import jax
import numpy as np

from cka_sr_jax._errors import unknown
from cka_sr_jax._paths import matches
from cka_sr_jax.sparsity.layers import Layer
from cka_sr_jax.sparsity.per_layer import by_path, layer_names

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[[Shapes, float], dict[str, float]]


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The global density in every layer."""
    return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: d_l proportional to sum(shape_l) / prod(shape_l), at most 1.

    Layers whose share exceeds 1 become dense, those tied at the largest share together; the rest is
    shared again until the global density is met (RigL; Evci et al. 2020, arXiv 1911.11134).

    >>> shapes = {"conv": (3, 3, 16, 32), "head": (32, 10)}
    >>> {path: round(share, 3) for path, share in erk(shapes, 0.1).items()}
    {'conv': 0.06, 'head': 0.674}
    """
    return _proportional(
        {path: sum(shape) / math.prod(shape) for path, shape in shapes.items()}, shapes, density
    )


def er(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi: d_l proportional to (in + out) / (in * out), at most 1 (Mocanu et al. 2018)."""
    return _proportional(
        {path: sum(shape[-2:]) / math.prod(shape[-2:]) for path, shape in shapes.items()},
        shapes,
        density,
    )


def erk_plus(head: str | None = None, head_density: float = 1.0) -> Distribution:
    """ERK with a fixed density of the classifier (Liu et al. 2022, arXiv 2202.02643).

    The other layers share what remains of the global density.

    Args:
      head: path pattern (`sparsity.matches`) of the classifier; None: the only parameter of rank 2.
      head_density: of the classifier.

    Raises:
      ValueError: when called, a classifier that is not clear, or a density that it exceeds alone.
    """

    def distribution(shapes: Shapes, density: float) -> dict[str, float]:
        path = _find_head(shapes, head, "erk_plus")
        fixed = {path: head_density}
        return _share_rest(erk, fixed, shapes, density, "erk_plus")

    return distribution


def uniform_plus(first: str | None = None, head: str | None = None) -> Distribution:
    """Uniform, with the first convolution dense and the classifier at 0.2 or more.

    The other layers are uniform, at the density that meets the global one (Gale et al. 2019, arXiv
    1902.09574; Liu et al. 2022, whose code divides by the size of all layers and so ends below it).

    Args:
      first: path pattern (`sparsity.matches`) of the first layer; None: the convolution with the
        fewest input channels.
      head: path pattern of the classifier; None: the only parameter of rank 2.

    Raises:
      ValueError: when called, layers that are not clear, or a density that they exceed alone.
    """

    def distribution(shapes: Shapes, density: float) -> dict[str, float]:
        name = "uniform_plus"
        head_path = _find_head(shapes, head, name)
        fixed = {_find_first(shapes, first, name): 1.0, head_path: max(density, 0.2)}
        return _share_rest(uniform, fixed, shapes, density, "uniform_plus")

    return distribution


DISTRIBUTIONS: dict[str, Callable[[], Distribution]] = {
    "uniform": lambda: uniform,
    "uniform_plus": uniform_plus,
    "er": lambda: er,
    "erk": lambda: erk,
    "erk_plus": erk_plus,
}


def layer_densities(
    shapes: Shapes, density: float, distribution: str | Mapping[str, float] | Distribution = "erk"
) -> dict[str, float]:
    """{path: density} of a distribution given by name, as a mapping, or as a function.

    >>> layer_densities({"conv/kernel": (9, 9), "head/kernel": (9, 2)}, 0.1, {"head": 1, "*": 0.2})
    {'conv/kernel': 0.2, 'head/kernel': 1.0}

    Args:
      shapes: {path: shape} of the layers.
      density: global density, in (0, 1].
      distribution: a name in DISTRIBUTIONS; a mapping from path patterns (`sparsity.matches`) to
        densities, of which the first that matches a layer counts, while `density` is not used; or a
        function `(shapes, density) -> {path: density}`.

    Raises:
      ValueError: density outside (0, 1]; an unknown name; a layer that no pattern matches; a
        distribution that cannot meet the density.
    """
    check_density(density)
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(unknown("distribution", distribution, DISTRIBUTIONS))
        distribution = DISTRIBUTIONS[distribution]()
    if isinstance(distribution, Mapping):
        return _from_patterns(shapes, distribution)
    return distribution(shapes, density)


def layer_counts(
    shapes: Shapes, density: float, distribution: str | Mapping[str, float] | Distribution = "erk"
) -> dict[str, int]:
    """{path: weights kept}: each layer's density times its size, rounded, and at least one.

    Arguments and errors as for `layer_densities`.
    """
    densities = layer_densities(shapes, density, distribution)
    return {path: max(1, round(densities[path] * math.prod(shapes[path]))) for path in shapes}


def counts_of(
    layers: Mapping[str, Layer],
    density: float,
    distribution: str | Mapping[str, float] | Distribution = "erk",
) -> dict[str, np.ndarray]:
    """{path: weights kept by each layer, an array of the stack's shape}, as `layer_counts`.

    A distribution sees the layers of a stack as layers of their own: path/0, path/1, ...
    """
    return by_path(layers, layer_counts(layer_names(layers), density, distribution))


def check_density(density: float, name: str = "density") -> None:
    """Check that `density` lies in (0, 1].

    Raises:
      ValueError: it does not.
    """
    number = isinstance(density, numbers.Real | np.ndarray | jax.Array)
    if not number or not 0 < density <= 1:
        raise ValueError(
            f"{name}={density!r} is not in (0, 1]: pass the share of weights to keep, for example "
            "0.05 for 95 % sparsity."
        )


def _proportional(raw: Mapping[str, float], shapes: Shapes, density: float) -> dict[str, float]:
    """scale * raw_l, capped at 1, with the scale that meets the global density."""
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    budget = density * sum(sizes.values())
    free = dict(raw)
    while free:
        scale = budget / sum(raw[path] * sizes[path] for path in free)
        largest = max(free.values())
        if scale * largest <= 1:
            break
        for path in [path for path in free if free[path] == largest]:
            del free[path]
            budget -= sizes[path]
    return {path: scale * raw[path] if path in free else 1.0 for path in raw}


def _share_rest(
    share: Distribution, fixed: Mapping[str, float], shapes: Shapes, density: float, name: str
) -> dict[str, float]:
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    rest = {path: shape for path, shape in shapes.items() if path not in fixed}
    budget = density * sum(sizes.values()) - sum(fixed[path] * sizes[path] for path in fixed)
    available = sum(sizes[path] for path in rest)
    if not rest or budget <= 0:
        raise ValueError(
            f"distribution {name!r} cannot reach density {density}, which its fixed layers "
            f"({', '.join(fixed)}) exceed alone: raise the density or use 'erk'."
        )
    # Rounding may put a budget that just fills the rest above 1.
    shared = share(rest, min(1.0, budget / available))
    return {path: fixed.get(path, shared.get(path, 0.0)) for path in shapes}


def _find_head(shapes: Shapes, pattern: str | None, distribution: str) -> str:
    candidates = [path for path in shapes if len(shapes[path]) == 2]
    return _find_one(shapes, "head", pattern, candidates, distribution)


def _find_first(shapes: Shapes, pattern: str | None, distribution: str) -> str:
    convolutions = [path for path in shapes if len(shapes[path]) > 2]
    fewest = min((shapes[path][-2] for path in convolutions), default=0)
    candidates = [path for path in convolutions if shapes[path][-2] == fewest]
    return _find_one(shapes, "first", pattern, candidates, distribution)


def _find_one(
    shapes: Shapes, role: str, pattern: str | None, candidates: list[str], distribution: str
) -> str:
    named = ""
    if pattern is not None:
        candidates = [path for path in shapes if matches(pattern, path)]
        named = f" for {role}={pattern!r}"
    if len(candidates) != 1:
        raise ValueError(
            f"distribution {distribution!r} does not fit this model, whose {role} layer is not "
            f"clear: {len(candidates)} candidates ({', '.join(candidates) or 'none'}){named}; use "
            f"another distribution, such as 'erk', or in code {distribution}({role}=path) with one "
            f"of {', '.join(shapes)}."
        )
    return candidates[0]


def _from_patterns(shapes: Shapes, patterns: Mapping[str, float]) -> dict[str, float]:
    densities = {}
    for path in shapes:
        found = [patterns[pattern] for pattern in patterns if matches(pattern, path)]
        if not found:
            raise ValueError(
                f"no pattern of the distribution matches layer {path!r}: add one for it, or '*' as "
                "the last."
            )
        check_density(found[0], f"density of {path}")
        densities[path] = float(found[0])
    return densities
