"""How often a Flax Linen module applies each kernel; the module is traced and not run."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cka_sr_jax._paths import leaf_paths

# What a value of a program is made from: the paths of parameters; None: (also) the input.
Origin: TypeAlias = frozenset[str] | None


def kernel_positions(module: nn.Module, variables: Mapping[str, Any], x: Any) -> dict[str, int]:
    """Path of each kernel -> number of output positions per example at which it is applied.

    The paths are in the order in which the module first applies them.

      multiply-adds of one example = sum over kernels of size * positions

    A convolution has H_out * W_out positions, a transposed one those of its input, a dense layer on
    a vector has 1, and a layer that is called twice counts both calls. Products with a
    convolution's zero padding are included. An array with a stack of layers, of `nn.scan` or
    `nn.vmap`, has the positions of one of them. What a `while_loop` applies counts once.

    Kernels are the parameters of rank 2 or more that a matrix product or a convolution takes, as
    they are or made into something else first, whatever their names.

      >>> model, x = nn.Conv(4, (3, 3)), np.zeros((1, 8, 8, 3))
      >>> kernel_positions(model, model.init(jax.random.key(0), x), x)
      {'kernel': 64}

    Args:
      module: called as `module.apply(variables, x, train=False, mutable=["features"])`, without
        the last two arguments where its `__call__` takes no `train`.
      variables: {"params": ..., "batch_stats": ...}, what `module.init` returns. The paths of the
        result are relative to "params", such as "stage1_block0/conv1/kernel".
      x: input [n, ...], an array or a `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: the variables have no collection "params".
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        names = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else ""
        raise ValueError(
            f"the variables have no 'params' but {names or type(variables).__name__}: pass what "
            "module.init returns, {'params': params} and the model's other collections."
        )
    options: dict[str, Any] = {}
    if "train" in inspect.signature(module.__call__).parameters:
        options = {"train": False, "mutable": ["features"]}
    others = {name: tree for name, tree in variables.items() if name != "params"}

    def forward(params: Any, others: Any, x: Any) -> Any:
        return module.apply({**others, "params": params}, x, **options)

    program = jax.make_jaxpr(forward)(variables["params"], others, x)
    kernels = {path: np.shape(leaf) for path, leaf in leaf_paths(variables["params"])}
    origins: list[Origin] = [
        frozenset([path]) if len(shape) >= 2 else frozenset() for path, shape in kernels.items()
    ]
    rest = len(program.jaxpr.invars) - len(origins) - len(jax.tree.leaves(x))
    origins += [frozenset()] * rest + [None] * len(jax.tree.leaves(x))
    sizes = {path: math.prod(shape) for path, shape in kernels.items()}
    products = _Products(sizes)
    products.walk(program.jaxpr, origins)
    return {path: n // (sizes[path] * x.shape[0]) for path, n in products.counts.items()}


class _Products:
    """Counts the multiply-adds of each kernel, {path: number}, while it walks a program."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.counts: Counter[str] = Counter()

    def walk(self, jaxpr: Jaxpr, origins: Sequence[Origin], times: int = 1) -> list[Origin]:
        """The origins of the program's results, for those of its arguments.

        Args:
          times: how often the program runs; 0 counts nothing.
        """
        known: dict[Any, Origin] = dict.fromkeys(jaxpr.constvars, frozenset())
        known |= dict(zip(jaxpr.invars, origins, strict=True))

        def origin(atom: Any) -> Origin:
            return frozenset() if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            outputs = self._apply(equation, [origin(atom) for atom in equation.invars], times)
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return [origin(atom) for atom in jaxpr.outvars]

    def _apply(self, equation: Any, origins: list[Origin], times: int) -> list[Origin]:
        """The origins of an operation's results."""
        name, inner = equation.primitive.name, _inner_programs(equation.params)
        if name == "scan":
            consts, carries = equation.params["num_consts"], equation.params["num_carry"]
            (body,) = inner
            return self._loop(body, origins, consts, carries, times * equation.params["length"])
        if name == "while":
            skipped = equation.params["cond_nconsts"]
            consts = equation.params["body_nconsts"]
            body = equation.params["body_jaxpr"].jaxpr
            carries = len(origins) - skipped - consts
            return self._loop(body, origins[skipped:], consts, carries, times)
        if name == "cond":
            return self._branches(inner, origins[1:], times)
        if inner and len(inner[0].invars) == len(origins):
            return self.walk(inner[0], origins, times)
        if times and name in ("dot_general", "conv_general_dilated"):
            # Of two that the input has no part in, the second is the kernel, as in Flax's layers.
            side = 0 if origins[1] is None else 1
            if kernels := origins[side]:
                kernel = max(kernels, key=self.sizes.__getitem__)  # others scale or shift it
                self.counts[kernel] += times * _multiply_adds(equation)
        made = None if None in origins else frozenset().union(*(o for o in origins if o))
        return [made] * len(equation.outvars)

    def _loop(
        self, body: Jaxpr, origins: list[Origin], consts: int, carries: int, times: int
    ) -> list[Origin]:
        carried = slice(consts, consts + carries)
        origins = list(origins)
        while True:  # until what is carried has the same origins before and after
            before = origins[carried]
            after = self.walk(body, origins, times=0)[:carries]
            origins[carried] = [_joined(pair) for pair in zip(before, after, strict=True)]
            if origins[carried] == before:
                return self.walk(body, origins, times)

    def _branches(self, branches: list[Jaxpr], origins: list[Origin], times: int) -> list[Origin]:
        """Of each kernel the branch with the most products counts."""
        walks = [_Products(self.sizes) for _ in branches]
        results = [
            walk.walk(branch, origins, times) for walk, branch in zip(walks, branches, strict=True)
        ]
        most: Counter[str] = Counter()
        for walk in walks:
            most |= walk.counts
        self.counts += most
        return [_joined(outputs) for outputs in zip(*results, strict=True)]


def _joined(origins: Sequence[Origin]) -> Origin:
    known = [origin for origin in origins if origin is not None]
    return None if len(known) < len(origins) else frozenset().union(*known)


def _inner_programs(params: Mapping[str, Any]) -> list[Jaxpr]:
    """The programs that an operation runs, as jit, remat and custom derivatives do."""
    entries = (entry if isinstance(entry, tuple | list) else [entry] for entry in params.values())
    programs = (
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in itertools.chain(*entries)
    )
    return [program for program in programs if isinstance(program, Jaxpr)]


def _multiply_adds(equation: Any) -> int:
    left, right = (atom.aval for atom in equation.invars)
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out.size * math.prod(left.shape[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    if any(step > 1 for step in equation.params["lhs_dilation"]):  # transposed
        return right.size * left.size // left.shape[numbers.lhs_spec[1]]
    return right.size * out.size // out.shape[numbers.out_spec[1]]
