"""Schedules over the steps of training: how many weights to move, how sparse to be, and when.

Each builder checks its arguments and gives a pure function of the step, traced or not, in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
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
        floor + (initial - floor) / 2 * (1 + jnp.cos(jnp.pi * _progress(step, 0, end_step)))
    )


def linear(initial: float, end_step: int, floor: float = 0.0) -> Schedule:
    """initial + (floor - initial) t / end_step.

    Raises:
      ValueError: as `cosine`.
    """
    _check_decay(initial, end_step, floor)
    return lambda step: initial + (floor - initial) * _progress(step, 0, end_step)


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


def cubic(initial: float, final: float, start_step: int, end_step: int) -> Schedule:
    """final + (initial - final) (1 - (t - start) / (end - start))^3, of a sparsity or a count.

    `initial` up to `start_step` and `final` from `end_step` on (Zhu & Gupta 2017, GMP).

    Raises:
      ValueError: `end_step` does not come after `start_step`.
    """
    check_steps(1, start_step, end_step)
    return lambda step: final + (initial - final) * (1 - _progress(step, start_step, end_step)) ** 3


def periodic(
    update_every: int, end_step: int, start_step: int = 0, also: int | None = None
) -> Callable[[Step], Bool[Array, ""]]:
    """Whether a step is one of start, start + every, start + 2 every, ... up to `end_step`.

    `end_step` is always one of them and step 0 never is: the masks of step 0 are the initial ones.

    Args:
      also: one more step.

    Raises:
      ValueError: `update_every` < 1, `start_step` < 0 or `end_step` <= `start_step`.
    """
    check_steps(update_every, start_step, end_step)

    def due(step: Step) -> Bool[Array, ""]:
        step = jnp.asarray(step)
        extra = (step == end_step) | (step == also) if also is not None else step == end_step
        inside = (step > 0) & (step >= start_step) & (step <= end_step)
        return inside & (((step - start_step) % update_every == 0) | extra)

    return due


def check_steps(update_every: int, start_step: int, end_step: int) -> None:
    """Raise ValueError unless updates every `update_every` steps fit between start and end."""
    if update_every < 1:
        raise ValueError(f"update_every={update_every} is not a number of steps: pass 1 or more.")
    if start_step < 0:
        raise ValueError(f"start_step={start_step} is negative: steps count from 0.")
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
            f"drop fraction {initial} is not in (0, 1): it is the share of a layer's weights that "
            "an update replaces, for example 0.3."
        )
    if not 0 <= floor <= initial:
        raise ValueError(f"drop fraction ends at {floor}, which is not in [0, {initial}].")
    if end_step < 1:
        raise ValueError(f"end_step={end_step} is not a number of steps: pass 1 or more.")


def _progress(step: Step, start_step: int, end_step: int) -> Float[Array, ""]:
    """0 at the start, 1 at the end, linear between and constant outside."""
    # Subtracted as integers: float32 holds these exactly only up to 2^24.
    done = jnp.clip(jnp.asarray(step) - start_step, 0, end_step - start_step)
    return done / jnp.float32(end_step - start_step)
