"""Schedules over the steps of training: how many weights to move, how many to keep, and when.

Each builder checks its arguments and gives a pure function of the step, traced or not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cka_sr_jax._errors import unknown

Step = int | Int[Array, ""]
Schedule = Callable[[Step], Float[Array, ""]]


def cosine(initial: float, end_step: int, floor: float = 0.0) -> Schedule:
    """floor + (initial - floor) / 2 (1 + cos(pi t / end_step)), RigL's (Evci et al. 2020).

    Raises:
      ValueError: `initial` outside (0, 1), `floor` outside [0, initial], or `end_step` < 1.
    """
    _check_decay(initial, end_step, floor)
    return lambda step: (
        floor + (initial - floor) / 2 * (1 + jnp.cos(jnp.pi * _progress(step, end_step)))
    )


def linear(initial: float, end_step: int, floor: float = 0.0) -> Schedule:
    """initial + (floor - initial) t / end_step.

    Raises:
      ValueError: as `cosine`.
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
    """The drop-fraction schedule of this name; a `fraction` that is a function is one already.

    Raises:
      ValueError: an unknown name, or what the schedule refuses.
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
    """How many weights to keep at each update of gradual pruning (Zhu & Gupta 2017, GMP).

      round(final + (initial - final) (1 - (t - start) / (end - start))^3)

    at the updates t = start, start + every, ...; `initial` before `start_step` and `final` from
    `end_step` on, also where they are one step. Exact for counts beyond float32's 2^24: NumPy
    computes them beforehand.

    Raises:
      ValueError: as `check_steps`, one step being allowed.
    """
    check_steps(update_every, start_step, end_step, one_shot=True)
    length = end_step - start_step
    left = 1 - np.arange(0, length, update_every) / max(length, 1)
    counts = np.rint(final + (initial - final) * np.append(left, 0.0) ** 3).astype(np.int32)

    def count(step: Step) -> Int[Array, ""]:
        step = jnp.asarray(step)
        update = jnp.clip((step - start_step) // update_every, 0, max(len(counts) - 2, 0))
        index = jnp.where(step >= end_step, len(counts) - 1, update)
        # Before a single step there is no entry yet.
        return jnp.where(step < start_step, initial, jnp.asarray(counts)[index])

    return count


def periodic(
    update_every: int, end_step: int, start_step: int = 0, *, also: int | None = None
) -> Callable[[Step], Bool[Array, ""]]:
    """Whether a step is one of start, start + every, start + 2 every, ... up to `end_step`.

    `end_step` is always one of them and step 0 never is: the masks of step 0 are the initial ones.

    Args:
      also: one more step.

    Raises:
      ValueError: as `check_steps`, one step being allowed.
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
    """Raise ValueError unless updates every `update_every` steps fit between start and end.

    Args:
      one_shot: whether start and end may be one step, at which there is one update.
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
            f"end_step={end_step} does not come after start_step={start_step}: the masks would "
            "never change."
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
            f"final_drop_fraction={floor} is not in [0, {initial}]: the share falls from "
            f"drop_fraction={initial} to it."
        )
    if end_step < 1:
        raise ValueError(f"end_step={end_step} is not a number of steps: pass 1 or more.")


def _progress(step: Step, end_step: int) -> Float[Array, ""]:
    """0 at step 0, 1 from `end_step` on, linear between."""
    # Clipped as integers: float32 holds these exactly only up to 2^24.
    return jnp.clip(jnp.asarray(step), 0, end_step) / jnp.float32(end_step)
