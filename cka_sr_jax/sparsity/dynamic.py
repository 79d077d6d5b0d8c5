"""Dynamic sparse training: drop some weights of a layer and grow as many, every so often.

SET, RigL, SNFS and MEST differ in the scores that they drop and grow by; each starts from random
masks. `replacement.py` has the update that they share.

Long because each rule documents its arguments in full.
"""

from __future__ import annotations

from cka_sr_jax.sparsity.layers import Axes, Patterns, finder
from cka_sr_jax.sparsity.masks import Masks
from cka_sr_jax.sparsity.replacement import Replacement, grow_first, replace_share
from cka_sr_jax.sparsity.rule import Distributed, Rule
from cka_sr_jax.sparsity.schedules import Schedule, drop_schedule, periodic
from cka_sr_jax.sparsity.scores import Score, get_score, magnitude_and_gradient
from cka_sr_jax.sparsity.starts import start_counts, start_masks


def sparse_evolutionary(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    grow: str | Score = "random",
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """Sparse Evolutionary Training (SET; Mocanu et al. 2018, arXiv 1707.04780).

    At each update a layer drops the floor(f(t) n) of its n weights with the lowest |w|, and grows
    as many at random places. Its count stays n. A weight that is dropped and grown in one update
    keeps its value; other new weights start at 0.

    With rare updates this is ITOP (Liu et al. 2021, arXiv 2102.02887): its authors take
    `drop_fraction=0.5`, `final_drop_fraction=0.005`, and `update_every` 1500 here and 4000 in
    `rigl`, at batch 128.

    >>> import optax
    >>> from cka_sr_jax.sparsity import sparse_evolutionary, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), sparse_evolutionary(0.05, end_step=7500))

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities, which replaces `density`;
        or a function `({path: shape}, density) -> {path: density}`.
      end_step: last step, counted from 0, that may change the masks; f ends there. Three quarters
        of the run is a sensible value: 7500 of 10,000 steps. It must come before the run's last
        step, so that the weights it grows are trained.
      update_every: steps from one change of the masks to the next; the first is at this step.
      drop_fraction: share of its weights that a layer replaces at first, f(0), in (0, 1); or f
        itself, a traceable function of the step, whose values are clipped to [0, 1].
      final_drop_fraction: f(end_step), in [0, drop_fraction]. A constant schedule or an f of your
        own does not use it.
      schedule: course of f between the two: "cosine", "linear" or "constant".
      drop: score of the weights in the mask; the lowest are dropped. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      grow: score of the weights outside the mask, likewise; the highest are grown.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of random ones, as `static` takes them. Each layer keeps
        their count; `density` and `distribution` are then unused.

    Raises:
      ValueError: a density, fraction, step or name that cannot work; at `init`, an unknown
        distribution or a pattern that matches nothing.
    """
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    find = finder(include, exclude, stacked, input_axes)
    how = Replacement(find, share, get_score(drop), get_score(grow))
    return Rule(
        init=start_masks(find, density, distribution, start),
        update=replace_share(how, start_counts(find, density, distribution, start)),
        due=periodic(update_every, end_step),
    )


def rigl(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    grow: str | Score = "gradient",
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """RigL, the rigged lottery (Evci et al. 2020, arXiv 1911.11134).

    At each update a layer drops the floor(f(t) n) of its n weights with the lowest |w|, and grows
    as many where the dense gradient |dL/dw| is largest. Its count stays n. A weight that is dropped
    and grown in one update keeps its value; other new weights start at 0.

    >>> import optax
    >>> from cka_sr_jax.sparsity import rigl, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), rigl(density=0.05, end_step=7500))

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities, which replaces `density`;
        or a function `({path: shape}, density) -> {path: density}`.
      end_step: last step, counted from 0, that may change the masks; f ends there. Three quarters
        of the run is a sensible value: 7500 of 10,000 steps. It must come before the run's last
        step, so that the weights it grows are trained.
      update_every: steps from one change of the masks to the next; the first is at this step.
      drop_fraction: share of its weights that a layer replaces at first, f(0), in (0, 1); or f
        itself, a traceable function of the step, whose values are clipped to [0, 1].
      final_drop_fraction: f(end_step), in [0, drop_fraction]. A constant schedule or an f of your
        own does not use it.
      schedule: course of f between the two: "cosine", "linear" or "constant".
      drop: score of the weights in the mask; the lowest are dropped. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      grow: score of the weights outside the mask, likewise; the highest are grown.
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of random ones, as `static` takes them. Each layer keeps
        their count; `density` and `distribution` are then unused.

    Raises:
      ValueError: a density, fraction, step or name that cannot work; at `init`, an unknown
        distribution or a pattern that matches nothing.
    """
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    find = finder(include, exclude, stacked, input_axes)
    how = Replacement(find, share, get_score(drop), get_score(grow))
    return Rule(
        init=start_masks(find, density, distribution, start),
        update=replace_share(how, start_counts(find, density, distribution, start)),
        due=periodic(update_every, end_step),
    )


def snfs(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    drop: str | Score = "magnitude",
    momentum: float = 0.9,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """Sparse networks from scratch (SNFS; Dettmers & Zettlemoyer 2019, arXiv 1907.04840).

    As `rigl`, but a layer grows where the average of its dense gradients is largest:

      a_t = momentum a_(t-1) + (1 - momentum) dL/dw,   grow by |a_t|

    `sparsify` keeps this average at every step, since the optimizer's own momentum is 0 at pruned
    weights. Each layer keeps its count, as in RigL's comparison; the paper also moves weights
    between layers.

    >>> import optax
    >>> from cka_sr_jax.sparsity import snfs, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), snfs(density=0.05, end_step=7500))

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities, which replaces `density`;
        or a function `({path: shape}, density) -> {path: density}`.
      end_step: last step, counted from 0, that may change the masks; f ends there. Three quarters
        of the run is a sensible value: 7500 of 10,000 steps. It must come before the run's last
        step, so that the weights it grows are trained.
      update_every: steps from one change of the masks to the next; the first is at this step.
      drop_fraction: share of its weights that a layer replaces at first, f(0), in (0, 1); or f
        itself, a traceable function of the step, whose values are clipped to [0, 1].
      final_drop_fraction: f(end_step), in [0, drop_fraction]. A constant schedule or an f of your
        own does not use it.
      schedule: course of f between the two: "cosine", "linear" or "constant".
      drop: score of the weights in the mask; the lowest are dropped. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      momentum: decay of the average, in (0, 1).
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of random ones, as `static` takes them. Each layer keeps
        their count; `density` and `distribution` are then unused.

    Raises:
      ValueError: a density, fraction, step or name that cannot work; at `init`, an unknown
        distribution or a pattern that matches nothing.
    """
    if not 0 < momentum < 1:
        raise ValueError(
            f"momentum={momentum} is not in (0, 1): it is the decay of the average, such as 0.9."
        )
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    find = finder(include, exclude, stacked, input_axes)
    how = Replacement(find, share, get_score(drop), get_score("gradient"))
    return Rule(
        init=start_masks(find, density, distribution, start),
        update=replace_share(how, start_counts(find, density, distribution, start)),
        due=periodic(update_every, end_step),
        gradient_decay=momentum,
    )


def mest(
    density: float,
    distribution: Distributed = "erk",
    *,
    end_step: int,
    update_every: int = 100,
    drop_fraction: float | Schedule = 0.3,
    final_drop_fraction: float = 0.0,
    schedule: str = "cosine",
    gradient_weight: float = 0.0,
    grow: str | Score = "random",
    soft: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
    stacked: Axes | None = None,
    input_axes: Axes | None = None,
    start: Masks | None = None,
) -> Rule:
    """Memory-economic sparse training (MEST; Yuan et al. 2021, arXiv 2110.14032).

    A layer drops the weights with the lowest |w| + gradient_weight |dL/dw| and grows at random
    places; a weight that was dropped starts anew if it grows at once. There are two orders:

    - Elastic mutation (EM, the default) drops floor(f(t) n) of the layer's n weights, then grows as
      many.
    - With a soft memory bound (EM&S, `soft=True`) the layer holds floor(f(t) n) weights more than n
      between updates. Each update, which by then knows what the new weights are worth, drops down
      to n and grows the next ones. The update at `end_step` only drops.

    >>> import optax
    >>> from cka_sr_jax.sparsity import mest, sparsify
    >>> tx = sparsify(optax.sgd(0.1, momentum=0.9), mest(0.05, end_step=7500, soft=True))

    Args:
      density: share of weights kept among all that are pruned, in (0, 1]: 1 - sparsity.
      distribution: how the layers share the density: "uniform", "uniform_plus", "er", "erk",
        "erk_plus"; a mapping from path patterns to the layers' densities, which replaces `density`;
        or a function `({path: shape}, density) -> {path: density}`.
      end_step: last step, counted from 0, that may change the masks; f ends there. Three quarters
        of the run is a sensible value: 7500 of 10,000 steps. It must come before the run's last
        step, so that the weights it grows are trained.
      update_every: steps from one change of the masks to the next; the first is at this step.
      drop_fraction: share of its weights that a layer replaces at first, f(0), in (0, 1); or f
        itself, a traceable function of the step, whose values are clipped to [0, 1].
      final_drop_fraction: f(end_step), in [0, drop_fraction]. A constant schedule or an f of your
        own does not use it.
      schedule: course of f between the two: "cosine", "linear" or "constant".
      gradient_weight: weight of |dL/dw| in the score to drop by, 0 or more.
      grow: score of the weights outside the mask; the highest are grown. A name ("magnitude",
        "gradient", "random", "sensitivity") or a function `(key, mask, param, grad) -> array` of
        the parameter's shape.
      soft: grow before dropping (EM&S).
      include: path patterns of the parameters to prune, in place of all kernels; `layers_of`
        describes this and the next three.
      exclude: path patterns (`sparsity.matches`) of parameters that stay dense, such as "head".
      stacked: {path pattern: leading axes that count layers}, for what `nn.scan` or `vmap` stacked.
      input_axes: {path pattern: number of input axes}, for unusual kernels of rank 3 or more.
      start: masks to start from in place of random ones, as `static` takes them. Each layer keeps
        their count; `density` and `distribution` are then unused.

    Raises:
      ValueError: a density, fraction, step or name that cannot work; at `init`, an unknown
        distribution or a pattern that matches nothing.
    """
    if not gradient_weight >= 0:
        raise ValueError(
            f"gradient_weight={gradient_weight} is not a number of 0 or more, such as 0.1."
        )
    share = drop_schedule(drop_fraction, schedule, end_step, final_drop_fraction)
    drop = magnitude_and_gradient(gradient_weight) if gradient_weight else get_score("magnitude")
    find = finder(include, exclude, stacked, input_axes)
    how = Replacement(find, share, drop, get_score(grow), restart=True)
    counts = start_counts(find, density, distribution, start)
    return Rule(
        init=start_masks(find, density, distribution, start),
        update=grow_first(how, end_step, counts) if soft else replace_share(how, counts),
        due=periodic(update_every, end_step),
    )
