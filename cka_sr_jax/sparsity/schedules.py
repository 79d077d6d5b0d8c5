"""Schedules over the steps of training: how many weights to move or keep, and when.

Each function checks its arguments and returns a pure function of the step, counted from 0, which
may be traced.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax._errors import unknown
from cka_sr_jax.sparsity.selection import count_dtype

Step = int | Int[Array, ""]
Schedule = Callable[[Step], Float[Array, ""]]


def cosine(initial: float, end_step: int, floor: float = 0.0) -> Schedule:
    """floor + (initial - floor) / 2 (1 + cos(pi t / end_step)): RigL's (Evci et al. 2020).

    Stays at `floor` after `end_step`.

    >>> share = cosine(0.3, end_step=7500)
    >>> [round(float(share(step)), 3) for step in (0, 3750, 7500, 10_000)]
    [0.3, 0.15, 0.0, 0.0]

    Args:
      initial: share at step 0, in (0, 1).
      end_step: step at which `floor` is reached, 1 or more.
      floor: in [0, initial].

    Raises:
      ValueError: an argument outside its range.
    """
    _check_decay(initial, end_step, floor)
    return lambda step: (
        floor + (initial - floor) / 2 * (1 + jnp.cos(jnp.pi * _progress(step, end_step)))
    )


def linear(initial: float, end_step: int, floor: float = 0.0) -> Schedule:
    """initial + (floor - initial) t / end_step, and `floor` after `end_step`.

    Arguments and errors as for `cosine`.
    """
    _check_decay(initial, end_step, floor)
    return lambda step: initial + (floor - initial) * _progress(step, end_step)


def constant(initial: float) -> Schedule:
    """The same share at every update.

    Raises:
      ValueError: `initial` outside (0, 1).
    """
    _check_decay(initial, 1, 0.0)
    return lambda step: jnp.full((), initial, jnp.float32)


def drop_schedule(
    fraction: float | Schedule, name: str, end_step: int, floor: float = 0.0
) -> Schedule:
    """The schedule called `name` from `fraction` to `floor`; or `fraction`, if it is a function.

    Raises:
      ValueError: an unknown name; an argument outside its range.
    """
    if callable(fraction):
        return fraction
    named = {
        "cosine": lambda: cosine(fraction, end_step, floor),
        "constant": lambda: constant(fraction),
        "linear": lambda: linear(fraction, end_step, floor),
    }
    if name not in named:
        raise ValueError(unknown("drop-fraction schedule", name, named))
    return named[name]()


def cubic_counts(
    initial: int, final: int, *, start_step: int, end_step: int, update_every: int
) -> Callable[[Step], Int[Array, ""]]:
    """How many weights gradual pruning keeps (GMP; Zhu & Gupta 2017, arXiv 1710.01878).

      round(final + (initial - final) (1 - (t - start_step) / (end_step - start_step))^3)

    at the updates t = start_step, start_step + update_every, ...; between two updates as at the
    earlier one. Before `start_step` it is `initial`, from `end_step` on `final`, also where the two
    steps are one. The counts are exact beyond float32's 2^24, since NumPy computes them beforehand.

    >>> count = cubic_counts(1000, 100, start_step=0, end_step=20, update_every=5)
    >>> [int(count(step)) for step in (0, 5, 9, 10, 20)]
    [1000, 480, 480, 212, 100]

    Raises:
      ValueError: as `check_steps` with `one_shot`.
    """
    check_steps(update_every, start_step, end_step, one_shot=True)
    length = end_step - start_step
    left = 1 - np.arange(0, length, update_every) / max(length, 1)
    counts = np.rint(final + (initial - final) * np.append(left, 0.0) ** 3)
    counts = counts.astype(count_dtype(initial))

    def count(step: Step) -> Int[Array, ""]:
        step = jnp.asarray(step)
        update = jnp.clip((step - start_step) // update_every, 0, max(len(counts) - 2, 0))
        index = jnp.where(step >= end_step, len(counts) - 1, update)
        # Before a single step there is no entry yet.
        first = jnp.asarray(initial, counts.dtype)
        return jnp.where(step < start_step, first, jnp.asarray(counts)[index])

    return count


def periodic(
    update_every: int, end_step: int, start_step: int = 0, *, also: int | None = None
) -> Callable[[Step], Bool[Array, ""]]:
    """Whether the masks change at a step: start_step, start_step + update_every, ... to `end_step`.

    `end_step` is always one of these steps. Step 0 never is, since its masks are the initial ones.

    >>> due = periodic(update_every=4, end_step=10)
    >>> [step for step in range(20) if due(step)]
    [4, 8, 10]

    Args:
      also: one more step.

    Raises:
      ValueError: as `check_steps` with `one_shot`.
    """
    check_steps(update_every, start_step, end_step, one_shot=True)

    def due(step: Step) -> Bool[Array, ""]:
        step = jnp.asarray(step)
        extra = (step == end_step) | (step == also) if also is not None else step == end_step
        inside = (step > 0) & (step >= start_step) & (step <= end_step)
        return inside & (((step - start_step) % update_every == 0) | extra)

    return due


def check_steps(
    update_every: int, start_step: int, end_step: int, *, one_shot: bool = False
) -> None:
    """Check that there is an update every `update_every` steps between `start_step` and `end_step`.

    Args:
      one_shot: allow `end_step` = `start_step`, a single update.

    Raises:
      ValueError: steps that are not whole numbers, or leave no update.
    """
    steps = {"update_every": update_every, "start_step": start_step, "end_step": end_step}
    for name, value in steps.items():
        if not isinstance(value, int | np.integer):
            raise ValueError(f"{name}={value!r} is not a number of steps: pass a whole number.")
    if update_every < 1:
        raise ValueError(f"update_every={update_every} is not a number of steps: pass 1 or more.")
    if start_step < 0:
        raise ValueError(f"start_step={start_step} is negative: steps count from 0.")
    if one_shot and end_step == start_step > 0:
        return
    if end_step <= start_step:
        raise ValueError(
            f"end_step={end_step} does not come after start_step={start_step}, so the masks would "
            "never change: pass a later end_step, such as three quarters of the run."
        )
    if update_every > end_step - start_step:
        raise ValueError(
            f"update_every={update_every} is more than the {end_step - start_step} steps from "
            f"start_step={start_step} to end_step={end_step}: update more often or train longer."
        )


def _check_decay(initial: float, end_step: int, floor: float) -> None:
    if not 0 < initial < 1:
        raise ValueError(
            f"drop_fraction={initial} is not in (0, 1): it is the share of a layer's weights that "
            "an update replaces, for example 0.3."
        )
    if not 0 <= floor <= initial:
        raise ValueError(
            f"final_drop_fraction={floor} is not in [0, {initial}]: it is what the share falls to "
            f"from drop_fraction={initial}, for example 0."
        )
    if end_step < 1:
        raise ValueError(f"end_step={end_step} is not a number of steps: pass 1 or more.")


def _progress(step: Step, end_step: int) -> Float[Array, ""]:
    """0 at step 0, 1 from `end_step` on, linear between."""
    # Clipped as integers: float32 holds these exactly only up to 2^24.
    return jnp.clip(jnp.asarray(step), 0, end_step).astype(jnp.float32) / end_step
