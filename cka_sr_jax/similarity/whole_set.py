"""The CKA of a whole data set: HSIC averaged over minibatches, and the ratio last.

A mean of the minibatches' CKAs would be another number: a mean of ratios, each from few samples.
Source: Nguyen et al. 2021 (arXiv 2010.15327), eq. 2 and 3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from cka_sr_jax.similarity.cka import cka_from_hsic, hsic_matrix
from cka_sr_jax.similarity.features import named_stages
from cka_sr_jax.similarity.grams import Kernel

RECORDED = ("features", "intermediates")  # collections that a model may write


class CKAMatrix(NamedTuple):
    """CKA between features, and what they are called; `plot_cka` draws it.

    Attributes:
      values: [l, l].
      names: l names, one per feature.
      stages: l names, the group of each feature; those of a group are next to each other.
    """

    values: Float[Any, "l l"]
    names: tuple[str, ...]
    stages: tuple[str, ...]


def cka_over_batches(
    features: Callable[[Any, Any], Any], *, kernel: Kernel = "linear", debiased: bool = True
) -> Callable[[Any, Iterable[Any]], Float[Array, "l l"]]:
    """`(variables, batches) -> [l, l]`: the CKA of a data set, for any model, compiled once.

      CKA_ij = mean_b HSIC_ij(b) / sqrt(mean_b HSIC_ii(b) mean_b HSIC_jj(b)),

    the means over the minibatches b, weighted by their samples. The debiased HSIC of a minibatch
    estimates that of the whole set without bias, whatever the minibatch's size. A minibatch with
    too few samples (4, or 2 when biased), as the last one may be, is left out.

    >>> import jax.numpy as jnp
    >>> def features(scale, x):
    ...     return x, jnp.tanh(scale * x)
    >>> cka = cka_over_batches(features)
    >>> x = jax.random.normal(jax.random.key(0), (70, 5))
    >>> print(cka(0.1, [x[:32], x[32:64], x[64:]]).round(2))
    [[1. 1.]
     [1. 1.]]

    Args:
      features: `(variables, batch) -> pytree of l arrays [n, ...]`; pure.
      kernel, debiased: as in `cka_penalty`.

    Raises:
      ValueError: when called: no minibatch has enough samples; else as `hsic_matrix`.
    """
    least = 4 if debiased else 2

    @jax.jit
    def hsic(variables: Any, batch: Any) -> Float[Array, "l l"]:
        return hsic_matrix(features(variables, batch), kernel=kernel, debiased=debiased)

    @jax.jit
    def add(total: Any, found: Any, weight: Any) -> Float[Array, "l l"]:
        return total + found * weight

    @jax.jit
    def finish(total: Any, weight: Any) -> Float[Array, "l l"]:
        return cka_from_hsic(total / weight)

    def cka(variables: Any, batches: Iterable[Any]) -> Float[Array, "l l"]:
        total: Any = None
        first = weight = 0.0
        for batch in batches:
            samples = _samples(batch)
            if samples >= least:
                first = first or samples  # weights of 1 where all are of one size: no rounding
                found = hsic(variables, batch)
                # The first has weight 1.
                total = found if total is None else add(total, found, samples / first)
                weight += samples / first
        if not weight:
            raise ValueError(
                f"no minibatch has the {least} samples that CKA needs: pass arrays [n, ...] of the "
                "model's inputs, such as images[i : i + 128]; a generator can be read only once."
            )
        return finish(total, weight)

    return cka


def compare_cka(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    include: str | Iterable[str] | None = None,
    *,
    stacked: Mapping[str, int] | None = None,
    kernel: Kernel = "linear",
    debiased: bool = True,
    **call: Any,
) -> CKAMatrix:
    """The CKA between a model's layers over a data set, for Linen and NNX models.

    By default it compares what the model sows: in Linen what `self.sow("features", ...)` records,
    in NNX `self.sow(nnx.Intermediate, ...)`. In a model that sows nothing, and with `include`, it
    compares the outputs of the modules. `cka_over_batches` has the formula, and takes any other
    kind of model.

    >>> import flax.linen as nn, numpy as np
    >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), nn.Dense(3)])
    >>> images = np.random.default_rng(0).normal(size=(4, 32, 5)).astype(np.float32)
    >>> variables = model.init(jax.random.key(0), images[0])
    >>> found = compare_cka(model, variables, list(images), include="layers_*")
    >>> found.names, found.values.shape
    (('layers_0', 'layers_2', 'layers_3'), (3, 3))

    Args:
      model: a Linen or an NNX module, called with one batch.
      variables: {"params": ..., "batch_stats": ...}, what `model.init` returns. For an NNX module
        None, or a State such as `nnx.state(model, nnx.Param)` to use in place of its own.
      batches: inputs [n, ...] of the model, such as `[images[:128], images[128:256]]` or
        `(images for images, labels in loader)`. The last one may be smaller.
      include: path patterns of the features to take, as in `stage_features`: "Block_*/__call__".
      stacked, kernel, debiased: as in `stage_features` and `cka_penalty`.
      **call: more arguments of the model, such as `train=False`. Put an NNX module in the mode to
        look at before: `model.eval()`.

    Raises:
      TypeError: neither a Linen nor an NNX module; one array instead of several batches.
      ValueError: variables without "params"; a feature without the batch's axis of samples; else as
        `stage_features` and `cka_over_batches`.
    """
    if hasattr(batches, "shape"):
        raise TypeError(
            f"batches is one array of shape {batches.shape}: pass a list of batches, such as "
            "[images] or [images[:128], images[128:256]]."
        )
    if include is not None:
        include = (include,) if isinstance(include, str) else tuple(include)
    record, variables = _recorder(model, variables, include, call)
    names: list[tuple[str, str]] = []

    def features(variables: Any, batch: Any) -> list[Array]:
        stages = named_stages(record(variables, batch), include, stacked=stacked)
        for path, x in (named for group in stages.values() for named in group):
            if x.shape[:1] != (_samples(batch),):
                raise ValueError(
                    f"the feature {path} has shape {x.shape} for a batch of {_samples(batch)} "
                    "samples: pass whole batches [n, ...]; cka_over_batches takes features whose "
                    "first axis counts something else."
                )
        # Here, as the program is traced: what leaves it has lost its names and its order.
        names[:] = [(stage, path) for stage, group in stages.items() for path, _ in group]
        return [x for group in stages.values() for _, x in group]

    values = cka_over_batches(features, kernel=kernel, debiased=debiased)(variables, batches)
    paths = [path.removesuffix("/__call__") for _, path in names]
    return CKAMatrix(values, distinct(paths), tuple(stage for stage, _ in names))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number after each that occurs several times.

    >>> distinct(["stem", "stage1", "stage1"])
    ('stem', 'stage1.0', 'stage1.1')
    """
    return tuple(
        f"{name}.{names[:i].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    )


def _samples(batch: Any) -> int:
    """The length of the first axis, that of the samples; 0 of what has none."""
    leaves = jax.tree.leaves(batch)
    shape = getattr(leaves[0], "shape", ()) if leaves else ()
    return shape[0] if shape else 0


def _recorder(
    model: Any, variables: Any, include: Any, call: Mapping[str, Any]
) -> tuple[Callable[[Any, Any], Any], Any]:
    """`(variables, batch) -> what the model recorded`, and the variables that it takes."""
    # Each is imported wherever there is a module of it; importing both here would cost a second.
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(model, linen.Module):
        return _linen_recorder(model, variables, include, call)
    if nnx is not None and isinstance(model, nnx.Module):
        return _nnx_recorder(nnx, model, variables, include, call)
    raise TypeError(
        f"the model is a {type(model).__name__}, neither a Linen nor an NNX module: write a "
        "function of its variables and a batch, and pass it to cka_over_batches."
    )


def _linen_recorder(
    model: Any, variables: Any, include: Any, call: Mapping[str, Any]
) -> tuple[Callable[[Any, Any], Any], Any]:
    if not isinstance(variables, Mapping) or (variables and "params" not in variables):
        given = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else ""
        raise ValueError(
            f"the variables have no 'params' but {given or type(variables).__name__}: pass what "
            "model.init returns, {'params': params} and the model's other collections."
        )
    # What init has recorded would come first again.
    variables = {name: tree for name, tree in variables.items() if name not in RECORDED}

    def record(variables: Any, batch: Any) -> Any:
        _, state = model.apply(
            variables, batch, capture_intermediates=True, mutable=RECORDED, **call
        )
        sown, outputs = (state.get(name, {}) for name in RECORDED)
        return sown if include is None and sown else outputs

    return record, variables


def _nnx_recorder(
    nnx: Any, model: Any, variables: Any, include: Any, call: Mapping[str, Any]
) -> tuple[Callable[[Any, Any], Any], Any]:
    if variables is not None:
        model = nnx.clone(model)
        nnx.update(model, variables)
    graph, state = nnx.split(model)

    def recorded(state: Any, batch: Any, outputs: bool) -> Any:
        kind = nnx.Intermediate if outputs else None
        forward = nnx.capture(nnx.merge(graph, state), nnx.Intermediate, method_outputs=kind)
        return forward(batch, **call)[1]

    def record(state: Any, batch: Any) -> Any:
        if not hasattr(nnx, "capture"):
            return _sown(nnx, nnx.merge(graph, state), batch, call)
        sown = recorded(state, batch, outputs=False)
        return sown if include is None and sown else recorded(state, batch, outputs=True)

    return record, state


def _sown(nnx: Any, module: Any, batch: Any, call: Mapping[str, Any]) -> Any:
    """What the module sows; Flax 0.11 records nothing else."""
    module(batch, **call)
    seen = nnx.pop(module, nnx.Intermediate)
    if not seen:
        raise ValueError(
            "the model sows nothing, and the outputs of an NNX model's modules are recorded from "
            "Flax 0.12 on: add self.sow(nnx.Intermediate, 'out', x) where x is to be compared."
        )
    return seen
